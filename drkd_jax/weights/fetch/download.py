"""Downloads a file from an address with a checksum: resumable, verified and cached.

Files are cached under their host and path. A download is stored as `NAME.part`, which the next try
continues, and is renamed when its checksum is right; only one process at a time works on it. The
checksum of a cached file is verified again; if it is right, the server is not contacted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import re
import ssl
import string
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from drkd_jax.errors import UserError
from drkd_jax.weights.foreign.files import sha256, what_it_is

CACHE = "DRKD_JAX_CACHE"
_SHORTEST, _WHOLE = 8, 64  # hex digits of a checksum
_HERE = ("localhost", "127.0.0.1", "::1")
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
_QUIET = 20.0  # seconds between two lines if no bar can be drawn
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)

_log = logging.getLogger(__name__)


class Address(NamedTuple):
    """The address of a file, and its checksum."""

    url: str  # without its fragment
    sum: str  # the first 8 to 64 hex digits of its SHA-256


class _CutError(Exception):
    """A transfer was cut off; the received part is kept, and another try may continue it."""


def parse_address(name: str) -> Address:
    """Parses `https://HOST/FILE#sha256=HEX`.

    Raises:
        UserError: the checksum or the file's name is missing, or it is http to another machine.
    """
    url, _, fragment = name.partition("#")
    _check_url(url, name)
    if not fragment:
        raise UserError(
            f"{name}: its sum is missing; write {url}#sha256=HEX, with the file's SHA-256 or at "
            f"least its first {_SHORTEST} hex digits"
        )
    found = re.fullmatch(rf"sha256=([0-9a-fA-F]{{{_SHORTEST},{_WHOLE}}})", fragment)
    if not found:
        raise UserError(
            f"{name}: what follows # has to be sha256= and {_SHORTEST} to {_WHOLE} hex digits"
        )
    return Address(url, found[1].lower())


def cache_folder() -> Path:
    """The folder for fetched files: `DRKD_JAX_CACHE`, else the user's cache.

    Raises:
        UserError: there is no such home folder.
    """
    own = os.environ.get(CACHE)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            return Path(own).expanduser()
        root = Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()
    except RuntimeError as error:  # such as in a container whose user has no entry
        raise UserError(
            f"{own or '~/.cache'}: there is no such home folder; set {CACHE} to a folder for "
            "fetched files"
        ) from error
    return root / "drkd_jax" / "weights"


def cached_place(url: str) -> Path:
    """The path in the cache for an address without its fragment; it need not exist."""
    parts = urlsplit(url)
    *folders, file = [part for part in parts.path.split("/") if part]
    if parts.query:  # may distinguish two files
        folders.append(hashlib.sha256(parts.query.encode()).hexdigest()[:12])
    host = (parts.hostname or "") + (f"_{parts.port}" if parts.port else "")
    return cache_folder().joinpath(host, *folders, file)


def fetch_address(name: str) -> Path:
    """The file of an address, from the cache or its server.

    Args:
        name: `https://HOST/FILE#sha256=HEX`.

    Raises:
        UserError: `parse_address` refuses it, the server cannot be reached or has no such file,
            the transfer was cut off, the checksum is wrong, or the cache cannot be written.
    """
    address = parse_address(name)
    place = cached_place(address.url)
    try:
        if _is_right(place, address):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            if not _is_right(place, address):  # another process may have fetched it meanwhile
                _fetch(address, place)
    except OSError as error:
        raise UserError(
            f"{name}: {place} cannot be written ({error.strerror or error}); {CACHE}=FOLDER keeps "
            "fetched files elsewhere"
        ) from error
    return place


def _is_right(path: Path, address: Address) -> bool:
    return path.is_file() and sha256(path).startswith(address.sum)


def _fetch(address: Address, place: Path) -> None:
    part = place.with_name(f"{place.name}.part")
    before = _size(part)
    begun = time.monotonic()
    if not (before and _is_right(part, address)):  # complete, but not yet renamed
        _transfer(address, part, place)
    digest = sha256(part)
    if before and not digest.startswith(address.sum):
        part.unlink()  # a part of another file from the same address
        _transfer(address, part, place)
        digest = sha256(part)
    if not digest.startswith(address.sum):
        what = what_it_is(part)
        part.unlink()
        raise UserError(
            f"{address.url}: the download has the SHA-256 {digest}, not {address.sum}"
            f"{'...' if len(address.sum) < _WHOLE else ''}"
            f"{f'; it is {what}' if what else ''}. Nothing of it is kept"
        )
    part.replace(place)
    size, seconds = place.stat().st_size, time.monotonic() - begun
    _say(f"fetched {place.name}: {size / 1e6:.1f} MB in {seconds:.0f} s, SHA-256 {digest}")


def _transfer(address: Address, part: Path, place: Path) -> None:
    """Fetches until the file is complete, continuing after every interrupted try.

    Raises:
        UserError: the file is not available, or no try makes progress.
        OSError: the file cannot be written.
    """
    waits, size = list(_WAITS), -1
    while True:
        try:
            _append(address.url, part)
            return
        except (_CutError, UserError) as error:
            now = _size(part)
            if now > size >= 0:
                waits = list(_WAITS)
            if isinstance(error, UserError) or not waits:
                kept = f"{now / 1e6:.1f} MB of it are kept, and the same command goes on from there"
                raise UserError(
                    f"{address.url}: {error}. {f'{kept}; ' if now else ''}a file from elsewhere is "
                    f"taken as well, from {place}"
                ) from error
            size = max(now, size)
            time.sleep(waits.pop(0))


def _append(url: str, part: Path) -> None:
    """One try: requests the missing rest of a file and appends it.

    Raises:
        _CutError: another try may make progress.
        UserError: another try would not.
        OSError: the file cannot be written.
    """
    there = _size(part)
    headers = {"User-Agent": "drkd_jax", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    # As urllib does with the address that a server leads on to.
    quoted = urllib.parse.quote(url, safe=string.punctuation)
    with _asked(urllib.request.Request(quoted, headers=headers), part) as response:
        start, total = 0, _number(response.headers.get("Content-Length"))
        if response.status == http.client.PARTIAL_CONTENT:
            span = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != there:
                part.unlink()
                raise _CutError("the server answers with another part of it than was asked for")
            start, total = there, _number(span[2])
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            with _transfer_bar(part.name.removesuffix(".part"), start, total) as more:
                for chunk in _chunks(response):
                    file.write(chunk)
                    more(len(chunk))
            came = file.tell()
            file.flush()
            os.fsync(file.fileno())
    if total is not None and came != total:
        raise _CutError(f"the transfer was cut at {came / 1e6:.1f} of {total / 1e6:.1f} MB")


@contextlib.contextmanager
def _asked(request: urllib.request.Request, part: Path) -> Iterator[Any]:
    """The server's response; its errors become those of `_append`."""
    host = urlsplit(request.full_url).hostname
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and part.exists():
            part.unlink()
            raise _CutError("the server has less of it than was kept") from error
        if error.code in _TRY_AGAIN:
            raise _CutError(f"the server is not able to answer (HTTP {error.code})") from error
        what = {404: "has no such file", 410: "has no such file"}.get(error.code, "refuses it")
        raise UserError(f"the server {what} (HTTP {error.code})") from error
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise UserError(f"{host} does not answer within {_TIMEOUT:.0f} s") from error
        if isinstance(reason, ssl.SSLError):
            raise UserError(
                f"the certificate or the encryption of {host} is not accepted ({reason}); where a "
                "proxy or an old system is the cause, SSL_CERT_FILE names the certificates to trust"
            ) from error
        words = getattr(reason, "strerror", None) or reason
        raise UserError(
            f"{host} cannot be reached ({words}): no network, or no such host"
        ) from error
    except ConnectionResetError as error:
        raise _CutError(f"{host} closed the connection without an answer") from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(f"{host} does not answer in HTTP ({error})") from error
    with response:
        yield response


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (http.client.HTTPException, OSError) as error:
            words = str(error) or type(error).__name__
            raise _CutError(f"the transfer was cut ({words})") from error
        if not chunk:
            return
        yield chunk


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, from https only to https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Refuses addresses that would be refused if the user gave them."""
        _check_url(newurl, f"redirects to {newurl}")
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise UserError(f"redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str, what: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{what}: is not an address ({error})") from error
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _HERE):
        raise UserError(f"{what}: only https is fetched (http from this machine alone)")
    if not (host or "").strip(".") or parts.username or parts.password:
        raise UserError(f"{what}: names no host, or a user with it; write https://HOST/FILE")
    names = [part for part in parts.path.split("/") if part]
    if not names or url.partition("?")[0].endswith("/") or {".", ".."} & set(names):
        raise UserError(f"{what}: names no file; write https://HOST/FILE")


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Locks a path of the cache; other processes that need it wait."""
    handle = os.open(f"{place}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that fetches {place.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            _log.warning("%s: this file system has no locks; fetch once at a time", place.parent)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _transfer_bar(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows the progress of a transfer: a bar on a terminal, elsewhere an occasional line."""
    lines, done, begun = not sys.stderr.isatty(), start, time.monotonic()
    printed = begun
    if lines:
        size = f" ({total / 1e6:.1f} MB)" if total else ""
        _say(f"fetching {name}{size}" + (f", from {start / 1e6:.1f} MB on" if start else ""))

    def more(count: int) -> None:
        nonlocal done, printed
        done, now = done + count, time.monotonic()
        bar.update(count)
        if lines and now - printed > _QUIET:
            printed, rate = now, (done - start) / (now - begun)
            left = f", about {(total - done) / rate:.0f} s left" if total else ""
            _say(f"{name}: {done / 1e6:.1f} MB, {rate / 1e6:.2f} MB/s{left}")

    shown = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
    with tqdm(total=total, initial=start, desc=name, disable=lines, **shown) as bar:
        yield more


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
