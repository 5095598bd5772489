"""Files from addresses: complete after any failure, or one clear message and no bad file."""

import hashlib
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from drkd_jax.__main__ import main
from drkd_jax.errors import UserError
from drkd_jax.weights.fetch import download
from drkd_jax.weights.fetch.by_name import local_file
from drkd_jax.weights.fetch.download import cached_place, fetch_address, parse_address
from tests.weights.fetch.server import serving

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SUM = hashlib.sha256(CONTENT).hexdigest()
PATH = "/models/x-0123abcd.pth"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """An empty cache, no proxy and no waiting."""
    monkeypatch.setenv(download.CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_WAITS", (0.0, 0.0))


@pytest.fixture
def files():
    with serving() as files:
        files.content[PATH] = CONTENT
        yield files


def kept():
    """The files in the cache, except for locks."""
    found = download.cache_folder().rglob("*")
    return sorted(path.name for path in found if path.is_file() and path.suffix != ".lock")


def spans(files):
    return [span for _, _, span in files.asked]


@pytest.mark.parametrize("digits", [8, 20, 64])
def test_a_file_is_fetched_once_and_its_whole_sum_is_told(files, digits, capsys):
    name = f"{files.url}{PATH}#sha256={SUM[:digits].upper()}"
    path = fetch_address(name)
    assert path.read_bytes() == CONTENT
    assert path.name == "x-0123abcd.pth"
    assert path == cached_place(files.url + PATH)
    told = capsys.readouterr().err
    assert "fetching x-0123abcd.pth (3.0 MB)" in told
    assert f"SHA-256 {SUM}" in told
    assert fetch_address(name) == path
    assert len(files.asked) == 1
    assert kept() == ["x-0123abcd.pth"]
    assert capsys.readouterr().err == ""


def test_rate_and_time_left_are_told_where_no_bar_can_be_drawn(files, capsys, monkeypatch):
    monkeypatch.setattr(download, "_QUIET", 0.0)
    fetch_address(f"{files.url}{PATH}#sha256={SUM}")
    lines = capsys.readouterr().err.splitlines()
    told = re.fullmatch(r"x-0123abcd\.pth: 1\.0 MB, [\d.]+ MB/s, about \d+ s left", lines[1])
    assert told, lines
    assert lines[-2].endswith("about 0 s left")


def test_a_cached_file_needs_no_server():
    with serving() as files:
        files.content[PATH] = CONTENT
        name = f"{files.url}{PATH}#sha256={SUM}"
        path = fetch_address(name)
    assert fetch_address(name) == path
    place = cached_place("https://example.org/by/hand.pth")
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)  # a file that was brought here otherwise
    assert fetch_address(f"https://example.org/by/hand.pth#sha256={SUM[:8]}") == place


def test_a_cut_transfer_goes_on_where_it_was_cut(files):
    files.cuts = [1_000_000, 500_000]
    assert fetch_address(f"{files.url}{PATH}#sha256={SUM}").read_bytes() == CONTENT
    assert spans(files) == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(files, capsys):
    files.cuts = [1_000_000, 0, 0, 0, 0]
    name = f"{files.url}{PATH}#sha256={SUM}"
    with pytest.raises(UserError, match=r"cut at 1\.0 of 3\.0 MB\. 1\.0 MB of it are kept, and th"):
        fetch_address(name)
    assert kept() == ["x-0123abcd.pth.part"]
    files.cuts = []
    assert fetch_address(name).read_bytes() == CONTENT
    assert spans(files)[-1] == "bytes=1000000-"
    assert "from 1.0 MB on" in capsys.readouterr().err
    assert kept() == ["x-0123abcd.pth"]


@pytest.mark.parametrize("ranges", [False, "shifted"])
def test_a_server_without_the_right_ranges_is_asked_for_the_whole(files, ranges):
    files.cuts, files.ranges = [1_000_000], ranges
    assert fetch_address(f"{files.url}{PATH}#sha256={SUM}").read_bytes() == CONTENT
    assert len(files.asked) == (2 if ranges is False else 3)


@pytest.mark.parametrize("left", [CONTENT[:-1] + b"?", CONTENT + b"more", b"of another file"])
def test_what_was_left_of_another_file_is_thrown_away(files, left):
    part = cached_place(files.url + PATH).with_suffix(".pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    assert fetch_address(f"{files.url}{PATH}#sha256={SUM}").read_bytes() == CONTENT
    assert files.asked[-1][2] is None
    assert kept() == ["x-0123abcd.pth"]


def test_a_whole_part_is_only_renamed(files):
    part = cached_place(files.url + PATH).with_suffix(".pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert fetch_address(f"{files.url}{PATH}#sha256={SUM}").read_bytes() == CONTENT
    assert files.asked == []


def test_a_wrong_sum_names_both_and_keeps_nothing(files):
    with pytest.raises(UserError, match=rf"has the SHA-256 {SUM}, not 0123abcd\.\.\.") as failure:
        fetch_address(f"{files.url}{PATH}#sha256=0123abcd")
    assert "Nothing of it is kept" in str(failure.value)
    assert kept() == []
    files.content["/login"] = b"<html><body>Log in first</body></html>"
    with pytest.raises(UserError, match=r"it is a web page \(HTML\)"):
        fetch_address(f"{files.url}/login#sha256=0123abcd")


def test_a_damaged_file_of_the_cache_is_fetched_again(files):
    name = f"{files.url}{PATH}#sha256={SUM}"
    path = fetch_address(name)
    path.write_bytes(CONTENT[:-1])
    assert fetch_address(name).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://h.org/x.pth", r"its sum is missing; write https://h\.org/x\.pth#sha256=HEX, "),
        ("https://h.org/x.pth#sha256=0123abc", "sha256= and 8 to 64 hex digits"),
        (f"https://h.org/x.pth#sha256={'0' * 65}", "sha256= and 8 to 64 hex digits"),
        ("https://h.org/x.pth#md5=0123abcd", "sha256= and 8 to 64 hex digits"),
        ("http://h.org/x.pth#sha256=0123abcd", "only https is fetched"),
        ("https://h.org/#sha256=0123abcd", "names no file"),
        ("https://h.org/models/#sha256=0123abcd", "names no file"),
        ("https://h.org/../../x.pth#sha256=0123abcd", "names no file"),
        ("https:///x.pth#sha256=0123abcd", "names no host"),
        ("https://../x.pth#sha256=0123abcd", "names no host"),
        ("https://me:word@h.org/x.pth#sha256=0123abcd", "or a user with it"),
        ("https://h.org:port/x.pth#sha256=0123abcd", "is not an address"),
        ("torchvision:resnet51", r"near: .*torchvision:resnet50"),
    ],
)
def test_names_that_say_too_little_are_refused(name, words):
    with pytest.raises(UserError, match=words) as failure:
        local_file(name)
    assert "\n" not in str(failure.value)


def test_a_query_tells_two_files_apart():
    one, other = (cached_place(f"https://h.org/get?id={k}") for k in (1, 2))
    assert one.name == other.name == "get"
    assert one != other


def test_what_a_server_refuses_is_said(files):
    sum_ = "#sha256=0123abcd"
    with pytest.raises(UserError, match=r"/none\.pth: the server has no such file \(HTTP 404\)"):
        fetch_address(f"{files.url}/none.pth{sum_}")
    files.status |= {"/mine.pth": 403, "/busy.pth": 503, "/out.pth": "http://example.org/x.pth"}
    with pytest.raises(UserError, match=r"the server refuses it \(HTTP 403\)"):
        fetch_address(f"{files.url}/mine.pth{sum_}")
    with pytest.raises(UserError, match=r"not able to answer \(HTTP 503\)"):
        fetch_address(f"{files.url}/busy.pth{sum_}")
    assert sum(path == "/busy.pth" for _, path, _ in files.asked) == 3
    with pytest.raises(UserError, match=r"redirects to http://example\.org/x\.pth: only https"):
        fetch_address(f"{files.url}/out.pth{sum_}")
    files.status["/old.pth"] = f"{files.url}{PATH}"
    assert fetch_address(f"{files.url}/old.pth#sha256={SUM}").read_bytes() == CONTENT
    assert kept() == ["old.pth"]


def test_without_a_network_there_is_one_line(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x.pth"
        with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached .*refused") as failure:
            fetch_address(f"{url}#sha256=0123abcd")
        assert f"a file from elsewhere is taken as well, from {cached_place(url)}" in str(
            failure.value
        )

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"h\.org cannot be reached \(Name or service not known\)"):
        fetch_address("https://h.org/x.pth#sha256=0123abcd")


def test_a_server_that_says_nothing_is_left(monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth"
        with pytest.raises(UserError, match="does not answer within"):
            fetch_address(f"{url}#sha256=0123abcd")


def test_a_cache_that_cannot_be_written_is_named(files, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(download.CACHE, str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written .*DRKD_JAX_CACHE=FOLDER keeps"):
        fetch_address(f"{files.url}{PATH}#sha256={SUM}")


def test_who_wants_the_same_file_at_once_waits_for_the_first(files, capsys):
    # A lock is that of an open file, so threads exclude each other as processes do.
    name = f"{files.url}{PATH}#sha256={SUM}"
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch_address, [name] * 4))
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert spans(files) == [None]
    assert "waiting for another process that fetches x-0123abcd.pth" in capsys.readouterr().err


def test_the_cache_lies_where_the_system_wants_it(monkeypatch, tmp_path):
    monkeypatch.delenv(download.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "drkd_jax" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "drkd_jax" / "weights"
    assert parse_address("https://h.org/x.pth#sha256=0123ABCD").sum == "0123abcd"


def test_a_cache_in_a_home_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(download.CACHE, "~nobody-of-that-name/cache")
    with pytest.raises(UserError, match=r"no such home folder; set DRKD_JAX_CACHE to a folder"):
        fetch_address("https://h.org/x.pth#sha256=0123abcd")


def test_letters_of_any_script_in_an_address_are_quoted(files):
    files.content["/%E9%87%8D%20x.pth"] = CONTENT
    for path in ("/重 x.pth", "/%E9%87%8D%20x.pth"):
        assert fetch_address(f"{files.url}{path}#sha256={SUM}").read_bytes() == CONTENT
    assert kept() == ["%E9%87%8D%20x.pth", "重 x.pth"]


def test_commands_take_names_and_end_with_code_2(files, tmp_path, capsys):
    out = str(tmp_path / "out.safetensors")
    name = f"{files.url}/none.pth#sha256=0123abcd"
    for command in (
        ["convert", "--from=mmdet", name, out],
        ["convert", "--to=mmdet", name, out],
        ["export", f"--weights={name}", "--to=safetensors", out],
        ["evaluate", f"--weights={name}", "--data=shapes:2"],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines()
        assert [line for line in said if line.startswith("error: ")] == said
        assert "the server has no such file (HTTP 404)" in said[0]
