"""One file from one http or https address, going on where an earlier attempt broke off.

While it arrives, the content is in PART, and in PART.json which address and version it is of; a
file that changed on the server meanwhile starts again. Where the server names no version, what has
arrived is gone on with only if the caller knows the content's checksum.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT = 30.0  # seconds without a byte
MIN_RATE, RATE_WINDOW = 1000, 60.0  # fewer bytes per second, over so many seconds: stalled
PAUSES = (1.0, 2.0, 4.0)  # seconds between the attempts
CHUNK = 1 << 18
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


class DownloadError(Exception):
    """An address that gave nothing usable; `again` when another attempt may help."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


def shown(url: str) -> str:
    """An address without passwords and tokens, for messages."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        address = urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))
    except ValueError:
        address = re.split(r"[?#]", url, maxsplit=1)[0].rpartition("@")[2]
    return _printable(address)


def _printable(text: object) -> str:
    """What a server or user sent, for a message: on one line, at most 500 characters."""
    return "".join(char if char.isprintable() else "?" for char in str(text)[:500])


def is_web_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an IPv6 address without its bracket, a port that is none
        return False


def receive(
    url: str,
    part: Path,
    *,
    size: int | None,
    max_bytes: int,
    label: str,
    is_checked: bool = False,
) -> bool:
    """Fill `part` with what `url` holds: `size` bytes if that is known, never above `max_bytes`.

    `is_checked` promises that the caller compares a checksum; then what has arrived of a file
    without version is gone on with too. Returns whether that happened: if the checksum is wrong,
    starting again may help. Raises DownloadError when the attempts are used up; what has arrived
    then stays in `part`.
    """
    for pause in (*PAUSES, None):
        try:
            return _attempt(url, part, size, size or max_bytes, label, is_checked)
        except DownloadError as error:
            if not error.again or pause is None:
                raise
            print(f"{label}: {error}; again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def discard(part: Path) -> None:
    """Forget what has arrived."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _attempt(
    url: str, part: Path, size: int | None, limit: int, label: str, is_checked: bool
) -> bool:
    is_begun, version = _begun(part, url)
    headers = {"User-Agent": "ppcls", "Accept-Encoding": "identity"}
    if is_begun and (version or is_checked):
        headers["Range"] = f"bytes={part.stat().st_size}-"
        headers |= {"If-Range": version} if version else {}
    with _open(url, headers, part) as answer:
        start, total = _place(answer, part, size, limit)
        if start == 0:
            part.write_bytes(b"")
            text = json.dumps({"url": url, "version": _validator(answer)})
            _note(part).write_text(text, "utf-8")
        _copy(answer, part, start, total, limit, label)
    return start > 0 and not version


def _begun(part: Path, url: str) -> tuple[bool, str | None]:
    """Whether `part` is a beginning of what `url` holds, and of which version if that is known."""
    try:
        noted = json.loads(_note(part).read_text("utf-8"))
        return noted["url"] == url and part.stat().st_size > 0, noted["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return False, None


def _validator(answer: Any) -> str | None:
    """A strong ETag, else the date; what If-Range takes."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _open(url: str, headers: dict[str, str], part: Path) -> Any:
    try:
        request = urllib.request.Request(_quoted(url), headers=headers)
        return _OPENER.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what is here is no beginning of what is there
            discard(part)
        again = error.code == 416 or error.code in _RETRIED
        reason = _printable(error.reason)
        raise DownloadError(f"HTTP {error.code} {reason}", again=again) from error
    except urllib.error.URLError as error:
        # An unknown host stays unknown, a refused redirect refused.
        again = not isinstance(error.reason, (socket.gaierror, str))
        reason = _printable(error.reason)
        raise DownloadError(f"no connection ({reason})", again=again) from error
    except (ValueError, http.client.InvalidURL) as error:  # UnicodeError among them
        # of a redirect, or a host name that cannot be encoded
        raise DownloadError(f"no proper address ({_printable(error)})") from error
    except _NETWORK_ERRORS as error:
        raise DownloadError(f"no answer ({_printable(error)})", again=True) from error


def _quoted(url: str) -> str:
    """The address with what may not stand in a path or query (`é`, a space) as %XX."""
    parts = urllib.parse.urlsplit(url)
    safe = "/%:@!$&'()*+,;=?"
    path, query = (urllib.parse.quote(part, safe) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def _place(answer: Any, part: Path, size: int | None, limit: int) -> tuple[int, int | None]:
    """Where the answer's bytes begin, and the size of the whole file if the server says it."""
    length = answer.headers.get("Content-Length")
    start, total = 0, int(length) if re.fullmatch("[0-9]{1,18}", length or "") else None
    if answer.status == 206:
        pattern = "bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})"
        span = re.fullmatch(pattern, answer.headers.get("Content-Range", ""))
        start, total = (int(span[1]), int(span[2])) if span else (-1, None)
        if start != (part.stat().st_size if part.exists() else 0):
            discard(part)
            raise DownloadError("the server sent another part than asked for", again=True)
    if total is not None and size is not None and total != size:
        raise DownloadError(f"expected {size:,} bytes, offered {total:,}")
    if total is not None and total > limit:
        raise DownloadError(f"expected at most {limit:,} bytes, offered {total:,}")
    return start, total


def _copy(answer: Any, part: Path, start: int, total: int | None, limit: int, label: str) -> None:
    progress, size, pace = _Progress(label, start, total), start, _Pace(start)
    with open(part, "ab", buffering=0) as file:
        while chunk := _read(answer, size):
            size += len(chunk)
            if size > limit:
                discard(part)
                raise DownloadError(f"expected at most {limit:,} bytes, got more")
            file.write(chunk)
            progress.show(size)
            pace.check(size)
    if total is not None and size != total:
        raise DownloadError(f"broken off after {size:,} of {total:,} bytes", again=True)
    progress.end(size)


def _read(answer: Any, size: int) -> bytes:
    """What has arrived, without waiting for a whole block of it."""
    try:
        return answer.read1(CHUNK)
    except (*_NETWORK_ERRORS, ValueError) as error:
        reason = f"broken off after {size:,} bytes ({_printable(error)})"
        raise DownloadError(reason, again=True) from error


class _Pace:
    """Finds connections that never time out since a byte trickles in now and then."""

    def __init__(self, size: int) -> None:
        self.since, self.size = time.monotonic(), size

    def check(self, size: int) -> None:
        now = time.monotonic()
        if now - self.since < RATE_WINDOW:
            return
        if size - self.size < MIN_RATE * (now - self.since):
            reason = f"stalled after {size:,} bytes: less than {MIN_RATE:,} bytes per second"
            raise DownloadError(reason, again=True)
        self.since, self.size = now, size


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"refused the redirect to {shown(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone: no file, ftp or data addresses, in redirects either."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        _Redirects,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


_OPENER = _opener()


class _Progress:
    """Lines on standard error: one that is rewritten on a terminal, elsewhere one in 10 s."""

    def __init__(self, label: str, start: int, total: int | None) -> None:
        self.label, self.start, self.total = label, start, total
        self.began = self.last = time.monotonic()
        self.on_terminal = sys.stderr.isatty()

    def show(self, size: int) -> None:
        now = time.monotonic()
        if now - self.last >= (0.2 if self.on_terminal else 10.0):
            self.last = now
            end = "\r" if self.on_terminal else "\n"
            print(self._line(size, now), end=end, file=sys.stderr, flush=True)

    def end(self, size: int) -> None:
        print(self._line(size, time.monotonic()), file=sys.stderr, flush=True)

    def _line(self, size: int, now: float) -> str:
        rate = (size - self.start) / max(now - self.began, 1e-3)
        of_total = f" of {self.total / 1e6:.1f}" if self.total else ""
        text = f"{self.label}: {size / 1e6:.1f}{of_total} MB, {rate / 1e6:.1f} MB/s"
        if self.total and 0 < rate and size < self.total:
            text += f", {(self.total - size) / rate:.0f} s left"
        return text
