"""A local file server that can truncate, refuse or redirect on demand."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """The server's content and behaviour; `asked` records the requests.

    Attributes:
        content: bytes by path.
        cuts: for each coming answer, the bytes after which it ends, or None.
        ranges: whether it supports ranges; "shifted" answers with a wrong one.
        status: answers by path instead of files: a status code, or an address to redirect to.
        headers: additional headers by path.
    """

    def __init__(self):
        self.content, self.status, self.headers = {}, {}, {}
        self.cuts, self.asked = [], []
        self.ranges = True
        self.url = ""


@contextlib.contextmanager
def serving():
    """Runs the server in a thread; yields its `Files`."""
    files = Files()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            span = self.headers.get("Range")
            files.asked.append((self.command, self.path, span))
            told = files.status.get(self.path, 200 if self.path in files.content else 404)
            if isinstance(told, str):
                self.send_response(302)
                self.send_header("Location", told)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            whole = files.content.get(self.path, b"")
            start = 0
            if span and files.ranges and told == 200:
                start = int(span.removeprefix("bytes=").split("-")[0])
                if files.ranges == "shifted":
                    start -= 1
                told = 206 if start < len(whole) else 416
            self.send_response(told)
            part = whole[start:] if told in (200, 206) else b""
            if told == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.send_header("Content-Length", str(len(part)))
            for name, value in files.headers.get(self.path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                cut = files.cuts.pop(0) if files.cuts and part else None
                with contextlib.suppress(OSError):
                    self.wfile.write(part[:cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
