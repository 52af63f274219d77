"""Downloads against a local server that misbehaves as asked."""

import contextlib
import hashlib
import http.server
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ppcls.utils import download, http_file
from ppcls.utils.download import fetch
from ppcls.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BODY = bytes(range(256)) * 4000  # about a megabyte
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = "weights.pdparams"


class Site:
    """What the server does, and the requests it got as (path, Range header)."""

    def __init__(self):
        self.body, self.tag = BODY, '"one"'
        self.requests = []
        self.stop_after = None  # bytes, then the connection closes
        self.delay = 0.0  # seconds between blocks
        self.statuses = []  # of the next answers, instead of the file
        self.redirect = None
        self.says_length = True  # a text: that instead
        self.block = 65536

    def start_of(self, headers):
        span = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
        is_same = headers.get("If-Range") in (None, self.tag)
        return int(span[1]) if span and is_same else None


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        site = self.server.site
        site.requests.append((self.path, self.headers.get("Range")))
        if site.statuses:
            return self.send_error(site.statuses.pop(0))
        if site.redirect:
            self.send_response(302)
            self.send_header("Location", site.redirect)
            return self.end_headers()
        start = site.start_of(self.headers)
        part = site.body[start or 0 :]
        self.send_response(200 if start is None else 206)
        if site.says_length:
            length = len(part) if site.says_length is True else site.says_length
            self.send_header("Content-Length", str(length))
        if site.tag:
            self.send_header("ETag", site.tag)
        if start is not None:
            size = len(site.body)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        stop, site.stop_after = site.stop_after, None
        with contextlib.suppress(OSError):
            for first in range(0, len(part[:stop]), site.block):
                self.wfile.write(part[:stop][first : first + site.block])
                time.sleep(site.delay)


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site()
    server.site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PPCLS_HOME", str(folder))
    monkeypatch.delenv("PPCLS_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http_file, "PAUSES", (0.01, 0.01))
    return folder


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def leftovers(folder):
    return sorted(name for name in os.listdir(folder) if ".part" in name)


def unused_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_download_once(site, home, capfd):
    for _ in range(2):
        path = fetch(f"{site.url}/x/{NAME}", NAME, sha256=SHA256)
    assert path == home / NAME and path.read_bytes() == BODY
    assert site.requests == [(f"/x/{NAME}", None)]
    assert visible(home) == ["hashes.json", NAME] and leftovers(home) == []
    assert re.search(rf"{NAME}: 1\.0 of 1\.0 MB, [\d.]+ MB/s", capfd.readouterr().err)


def test_download_folder(monkeypatch, home):
    assert download.cache_folder() == home
    monkeypatch.delenv("PPCLS_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert download.cache_folder() == Path("/somewhere/ppcls")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download.cache_folder() == Path.home() / ".cache" / "ppcls"


@pytest.mark.parametrize("prefix", [SHA256[:8], SHA256[:8].upper(), None])
def test_download_checks_what_is_known(site, prefix):
    fetch(site.url, NAME, sha256=prefix, size=len(BODY))


def test_download_by_git_blob(site, home):
    blob = hashlib.sha1(b"blob %d\0" % len(BODY) + BODY).hexdigest()
    fetch(site.url, NAME, sha256="00000000", git_blob=blob)
    assert json.loads((home / "hashes.json").read_text()) == {NAME: SHA256}
    fetch(site.url, NAME, sha256="00000000", git_blob=blob)
    with pytest.raises(UserError, match="expected SHA-256 00000000, found"):
        fetch(site.url, "other", sha256="00000000", git_blob="0" * 40)


def test_download_of_a_wrong_hash_leaves_no_file(site, home):
    with pytest.raises(UserError, match=f"expected SHA-256 abcd, found {SHA256}"):
        fetch(site.url, NAME, sha256="abcd")
    assert visible(home) == [] and leftovers(home) == []
    fetch(site.url, NAME, sha256=SHA256)
    (home / NAME).write_bytes(b"damaged")
    site.body = b"<html>domain for sale</html>"
    with pytest.raises(UserError, match="expected SHA-256"):
        fetch(site.url, NAME, sha256=SHA256)
    site.body = BODY
    assert fetch(site.url, NAME, sha256=SHA256).read_bytes() == BODY


def test_download_keeps_the_hash_of_the_first_use(site, home):
    fetch(site.url, NAME, sha256=None)
    assert json.loads((home / "hashes.json").read_text()) == {NAME: SHA256}
    (home / NAME).unlink()
    site.body, site.tag = BODY + b"!", '"two"'
    with pytest.raises(UserError, match=r"its first use, recorded in .*hashes\.json") as raised:
        fetch(site.url, NAME, sha256=None)
    assert "\n" not in str(raised.value) and visible(home) == ["hashes.json"]
    (home / "hashes.json").write_text("{}")
    assert fetch(site.url, NAME, sha256=None).read_bytes() == BODY + b"!"


def test_download_takes_a_file_put_there(home):
    home.mkdir()
    (home / NAME).write_bytes(BODY)
    assert fetch([], NAME, sha256=None) == home / NAME
    (home / NAME).write_bytes(BODY[1:])
    with pytest.raises(UserError, match="no program can fetch it.*put it there"):
        fetch([], NAME, sha256=None)


def test_download_resumes_after_a_break(site, home):
    site.stop_after = 300_000
    path = fetch(site.url, NAME, sha256=SHA256)
    assert path.read_bytes() == BODY
    assert site.requests == [("/", None), ("/", "bytes=300000-")]


def test_download_resumes_after_a_kill(site, home):
    site.delay = 0.1
    code = f"from ppcls.utils.download import fetch; fetch({site.url!r}, {NAME!r}, sha256=None)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    part = home / f".{NAME}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    arrived, site.delay = part.stat().st_size, 0.0
    assert 100_000 < arrived < len(BODY) and visible(home) == []
    assert fetch(site.url, NAME, sha256=SHA256).read_bytes() == BODY
    assert site.requests == [("/", None), ("/", f"bytes={arrived}-")]


@pytest.mark.parametrize("tag", ['"two"', None])
def test_download_of_a_changed_file_starts_again(site, home, tag, monkeypatch):
    monkeypatch.setattr(http_file, "PAUSES", ())
    site.stop_after = 300_000
    with pytest.raises(UserError, match="broken off after 300,000 of 1,024,000 bytes"):
        fetch(site.url, NAME, sha256=None)
    assert leftovers(home)
    site.body, site.tag = BODY[::-1], tag
    assert fetch(site.url, NAME, sha256=None).read_bytes() == BODY[::-1]


def test_download_from_another_address_starts_again(site, home, monkeypatch):
    monkeypatch.setattr(http_file, "PAUSES", ())
    site.stop_after = 300_000
    urls = [f"{site.url}/a", f"{site.url}/b"]
    assert fetch(urls, NAME, sha256=None).read_bytes() == BODY
    assert site.requests == [("/a", None), ("/b", None)]


def test_download_retries_what_may_pass(site):
    site.statuses = [503, 429]
    fetch(site.url, NAME, sha256=SHA256)
    assert len(site.requests) == 3


def test_download_gives_up(site, home):
    site.statuses = [503] * 9
    with pytest.raises(UserError, match="HTTP 503"):
        fetch(site.url, NAME, sha256=SHA256)
    assert len(site.requests) == 3
    site.statuses = [404] * 9
    with pytest.raises(UserError, match="HTTP 404"):
        fetch(site.url, NAME, sha256=SHA256)
    assert len(site.requests) == 4 and visible(home) == []


def test_download_bounds_sizes(site, home, monkeypatch):
    with pytest.raises(UserError, match="expected 1,000 bytes, offered 1,024,000"):
        fetch(site.url, NAME, sha256=None, size=1000)
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="expected at most 1,000 bytes, offered 1,024,000"):
        fetch(site.url, NAME, sha256=None)
    site.says_length = False
    with pytest.raises(UserError, match="expected at most 1,000 bytes, got more"):
        fetch(site.url, NAME, sha256=None)
    assert visible(home) == [] and leftovers(home) == []
    monkeypatch.undo()


def test_download_shorter_than_known(site, home):
    site.says_length, site.body = False, BODY[:1000]
    with pytest.raises(UserError, match="expected 1,024,000 bytes, found 1,000"):
        fetch(site.url, NAME, sha256=None, size=len(BODY))
    assert visible(home) == []


def test_download_mirror_comes_first(site, monkeypatch):
    monkeypatch.setenv("PPCLS_MIRROR", f"{site.url}/mirror/")
    fetch(f"{site.url}/own", NAME, sha256=SHA256)
    assert [path for path, _ in site.requests] == [f"/mirror/{NAME}"]
    site.statuses = [404]
    fetch(f"{site.url}/own", "other", sha256=SHA256)
    assert [path for path, _ in site.requests[1:]] == ["/mirror/other", "/own"]
    fetch(f"{site.url}/own", "third", sha256=SHA256, use_mirror=False)
    assert site.requests[3:] == [("/own", None)]


def test_download_offline_says_what_to_do(home):
    url = f"{unused_address()}/files/{NAME}?token=secret"
    with pytest.raises(UserError, match="no connection") as raised:
        fetch(url, NAME, sha256=None)
    text = str(raised.value)
    assert text.count("\n") == 0 and "secret" not in text
    assert text.endswith(f"get it from {url.partition('?')[0]} and put it there: {home / NAME}")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/x", "data:,x", "/etc/x", "x"])
def test_download_takes_web_addresses_alone(url, monkeypatch):
    with pytest.raises(UserError, match="expected an http or https address, got"):
        fetch(url, NAME, sha256=None)
    monkeypatch.setenv("PPCLS_MIRROR", url)
    with pytest.raises(UserError, match="expected an http or https address, got"):
        fetch("http://127.0.0.1:1/x", NAME, sha256=None)


def test_download_follows_no_redirect_to_a_file(site, tmp_path, home):
    (tmp_path / "secret").write_text("secret")
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x"):
        site.redirect = target
        with pytest.raises(UserError, match="cannot download"):
            fetch(site.url, NAME, sha256=None)
    assert visible(home) == []


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 300, "a b"])
def test_download_file_names_are_plain(site, name):
    with pytest.raises(UserError, match="expected a plain file name"):
        fetch(site.url, name, sha256=None)


def _fetch_in_child(url, queue):
    queue.put(str(fetch(url, NAME, sha256=None)))


def test_download_by_four_processes_is_one_request(site, home):
    site.delay = 0.02
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_fetch_in_child, args=(site.url, queue)) for _ in range(4)]
    for child in children:
        child.start()
    assert {queue.get(timeout=60) for _ in children} == {str(home / NAME)}
    for child in children:
        child.join()
    assert len(site.requests) == 1 and (home / NAME).read_bytes() == BODY


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_download_folder_that_cannot_be_written(site, home):
    home.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        fetch(site.url, NAME, sha256=None)


def test_download_shared_cache_is_only_read(home, monkeypatch):
    home.mkdir()
    (home / NAME).write_bytes(BODY)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert fetch([], NAME, sha256=SHA256) == home / NAME
    assert os.listdir(home) == [NAME]
    with pytest.raises(UserError, match="and the folder cannot be written"):
        fetch([], NAME, sha256="abcd")


def test_download_records_must_be_sound(site, home):
    home.mkdir()
    (home / "hashes.json").write_text("[1]")
    with pytest.raises(UserError, match="hashes.json: expected a JSON object"):
        fetch(site.url, NAME, sha256=None)


def test_download_with_a_strange_length(site):
    for length in ("\xb2", "9" * 5000, "-1"):
        site.says_length = length
        with contextlib.suppress(UserError):  # http.client may take it for an empty answer
            fetch(site.url, f"n{len(length)}", sha256=SHA256)


def test_download_refuses_damaged_addresses(site, home):
    for url in ("http://[::1", "http://h:99999/x", "http://h:x/", "http://u:secret@[x/", "http://"):
        with pytest.raises(UserError, match="expected an http or https address") as raised:
            fetch(url, NAME, sha256=None)
        assert "secret" not in str(raised.value)
    for target in ("http://[bad/x", "http://" + "x" * 99 + "\xe9/x"):
        site.redirect = target
        with pytest.raises(UserError, match="cannot download") as raised:
            fetch(site.url, NAME, sha256=None)
        assert str(raised.value).isprintable()
    assert visible(home) == []


def test_download_quotes_paths(site):
    fetch(f"{site.url}/\xe9 x%20.pth?q=\xe9", NAME, sha256=SHA256)
    assert site.requests == [("/%C3%A9%20x%20.pth?q=%C3%A9", None)]


def test_download_that_only_trickles_is_retried(site, monkeypatch, capfd):
    monkeypatch.setattr(http_file, "RATE_WINDOW", 0.1)
    monkeypatch.setattr(http_file, "PAUSES", ())
    site.delay, site.block = 0.03, 10
    started = time.monotonic()
    with pytest.raises(UserError, match="stalled after .* less than 1,000 bytes per second"):
        fetch(site.url, NAME, sha256=SHA256)
    assert time.monotonic() - started < 5
    monkeypatch.setattr(http_file, "PAUSES", (0.01,))
    site.delay, site.block = 0.0, 65536
    assert fetch(site.url, NAME, sha256=SHA256).read_bytes() == BODY
    assert re.fullmatch(r"bytes=\d+-", site.requests[-1][1])


def test_download_without_a_version_resumes_if_the_hash_is_known(site, home, monkeypatch):
    site.tag, site.stop_after = None, 300_000
    fetch(site.url, NAME, sha256=SHA256)
    assert site.requests == [("/", None), ("/", "bytes=300000-")]
    site.stop_after = 300_000
    fetch(site.url, "unknown", sha256=None)
    assert site.requests[2:] == [("/", None), ("/", None)]
    monkeypatch.setattr(http_file, "PAUSES", ())
    site.stop_after, site.body = 300_000, BODY[::-1]
    with pytest.raises(UserError, match="broken off"):
        fetch(site.url, "third", sha256=SHA256)
    site.body = BODY  # what has arrived is of another file: only the hash tells
    assert fetch(site.url, "third", sha256=SHA256).read_bytes() == BODY
    assert site.requests[4:] == [("/", None), ("/", "bytes=300000-"), ("/", None)]
