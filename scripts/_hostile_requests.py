"""Requests no honest client sends, each with what a sound server may answer.

Used by scripts/load_server.py and by the tests. Everything comes from a seed.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

Address = tuple[str, int]


class Hostile(NamedTuple):
    """The bytes of a request, and the answers that are right."""

    name: str
    data: bytes
    may_pass: bool = False  # a damaged file may still be a picture: 200 is right too

    def is_right(self, status: int | None) -> bool:
        """Whether an answer is right: 4xx. None, the connection closed without one, is not."""
        return status is not None and (400 <= status < 500 or (self.may_pass and status == 200))


def exchange(address: Address, data: bytes, timeout: float = 20.0) -> tuple[int | None, bytes]:
    """Send bytes and read the answer; the status is None when the server says nothing."""
    with socket.create_connection(address, timeout) as client:
        with contextlib.suppress(ConnectionError):  # it may answer before it has heard all
            client.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                answer += part
                if _is_whole(answer):
                    break
    head = answer.partition(b"\r\n")[0].split(b" ")
    return (int(head[1]) if len(head) > 1 and head[1].isdigit() else None), answer


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if separator and line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False


def request(body: bytes, *headers: str, target: str = "/predict", method: str = "POST") -> bytes:
    """A request whose frame is right, whatever its body is."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def hostile_requests(count: int, seed: int, limits: dict[str, int]) -> Iterator[Hostile]:
    """Yield `count` requests of all kinds in turn.

    Args:
        limits: the server's own, from /metadata: max_bytes, max_pixels, max_images.
    """
    for index in range(count):
        kind, make = list(_KINDS.items())[index % len(_KINDS)]
        made = make(random.Random(f"{seed} {index}"), limits)
        data, may_pass = made if isinstance(made, tuple) else (made, False)
        yield Hostile(f"{kind} {index}", data, may_pass)


# ---------------------------------------------------------------- files


def _noise(rng: random.Random, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _file(rng: random.Random, form: str) -> bytes:
    file = io.BytesIO()
    _noise(rng, rng.randint(8, 64), rng.randint(8, 64)).save(file, form)
    return file.getvalue()


def _image_request(data: bytes, kind: str = "image/jpeg") -> bytes:
    return request(data, f"Content-Type: {kind}")


def _no_image(rng: random.Random, limits: dict[str, int]) -> bytes:
    texts = [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"PK\3\4",
        b"\x7fELF",
    ]
    texts += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a", b"BM", b"RIFF"]
    texts += [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"P6 1", b"<html>", b"\0" * 999]
    return _image_request(rng.choice(texts))


def _random_bytes(rng: random.Random, limits: dict[str, int]) -> bytes:
    return _image_request(rng.randbytes(rng.randint(1, 5000)), "application/octet-stream")


def _cut_short(rng: random.Random, limits: dict[str, int]) -> bytes:
    data = _file(rng, rng.choice(["JPEG", "PNG", "WEBP"]))
    return _image_request(data[: int(len(data) * rng.uniform(0.02, 0.9))])


def _damaged(rng: random.Random, limits: dict[str, int]) -> tuple[bytes, bool]:
    data = bytearray(_file(rng, rng.choice(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])))
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return _image_request(bytes(data)), True


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def _claims_size(rng: random.Random, limits: dict[str, int]) -> bytes:
    """A few bytes whose header claims more pixels than are taken."""
    side = int(limits["max_pixels"] ** 0.5) + rng.randint(2, 10_000)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 99))
    )
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, side, side, 1, 24, *[0] * 6)
    ppm = b"P6\n%d %d\n255\n" % (side, side) + b"\0" * 99
    gif = bytearray(_file(rng, "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    jpeg = bytearray(_file(rng, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return _image_request(
        rng.choice([png + _chunk(b"IEND", b""), bmp, ppm, bytes(gif), bytes(jpeg)])
    )


def _bomb(rng: random.Random, limits: dict[str, int]) -> bytes:
    """A whole file, small and valid, of more pixels than are taken."""
    side = int(limits["max_pixels"] ** 0.5) + rng.randint(2, 500)
    row = b"\0" * (side // 8 + 2)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row * 256) for _ in range(side // 256 + 1)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data)
    return _image_request(png + _chunk(b"IEND", b""), "image/png")


def _text_bomb(rng: random.Random, limits: dict[str, int]) -> bytes:
    """A PNG file with compressed texts of many megabytes, and no picture."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    texts = _long_text() * rng.randint(1, 5)
    return _image_request(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + texts)


@functools.cache
def _long_text() -> bytes:
    return _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 20_000_000))


def _many_parts(rng: random.Random, limits: dict[str, int]) -> bytes:
    """A small picture in so many parts that decoders would take minutes."""
    jpeg, png = _file(rng, "JPEG"), _file(rng, "PNG")
    count = rng.randint(12_000, 20_000)
    exif = b"\xff\xe1\0\2" * count
    fill = b"\xff" * count
    files = [
        jpeg[:2] + exif + jpeg[2:],
        jpeg[:2] + fill + jpeg[2:],
        png[:33] + _chunk(b"zzZz", b"") * count + png[33:],
        b"P3\n200 200\n255\n" + b"1 #\n" * count,
        progressive_jpeg(rng.randint(8, 1000), rng.randint(101, 400)),
    ]
    return _image_request(rng.choice(files))


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A grey JPEG file whose scans but the first say that there is nothing more to say."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    blocks = (-(-side // 8)) ** 2
    runs = -(-blocks // 32767)  # blocks that fifteen bits, 0 and fourteen ones, pass over
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    ends = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, b"\0" + b"\1" * 64),
            segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"),
            segment(0xC4, b"\0\1" + b"\0" * 15 + b"\0"),
            segment(0xC4, b"\x10\1" + b"\0" * 15 + b"\xe0"),
            segment(0xDA, b"\1\1\0\0\0\0") + b"\0" * -(-blocks // 8),
            (segment(0xDA, b"\1\1\0\1\x3f\0") + ends) * (scans - 1),
            b"\xff\xd9",
        ]
    )


def _animation(rng: random.Random, limits: dict[str, int]) -> bytes:
    file = io.BytesIO()
    first, *rest = (_noise(rng, 16, 16) for _ in range(rng.randint(2, 5)))
    form = rng.choice(["GIF", "PNG", "WEBP", "TIFF"])
    first.save(file, form, save_all=True, append_images=rest)
    return _image_request(file.getvalue(), f"image/{form.lower()}")


# ---------------------------------------------------------------- JSON and forms


def _json(rng: random.Random, limits: dict[str, int]) -> bytes:
    good = base64.b64encode(_file(rng, "PNG")).decode()
    many = limits["max_images"] + rng.randint(1, 50)
    contents: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: b'{"images": [' + b"[" * rng.randint(1, 200_000),
        lambda: json.dumps({"images": [good] * 2}).encode()[: rng.randint(1, 90)],
        lambda: json.dumps({"images": [good] * many}).encode(),
        lambda: json.dumps({"images": [good[: rng.randint(1, 80) * 4 + 1]]}).encode(),
        lambda: json.dumps(
            {"images": [good], "top_k": rng.choice([0, -1, 1e9, "a", [], {}])}
        ).encode(),
        lambda: json.dumps(
            {"images": rng.choice([None, 1, "x", {}, [], [1], [None], [[]]])}
        ).encode(),
        lambda: json.dumps({"image": good}).encode(),
        lambda: json.dumps(rng.choice([None, 1, "x", [good], float("nan")])).encode(),
        lambda: b'{"images": [' + b"9" * rng.randint(5000, 50_000) + b"]}",
        lambda: b'{"images": ["\xff\xfe"]}',
        lambda: b'{"images": ["\\ud800"]}',
        lambda: b'{"\\ud800": 1, "images": []}',
        lambda: b'{"images": [' + b"{}," * rng.randint(1000, 50_000) + b"1]}",
    ]
    return request(rng.choice(contents)(), "Content-Type: application/json")


def _form(rng: random.Random, limits: dict[str, int]) -> bytes:
    image = _file(rng, "PNG")
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    field = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n--b--\r\n'
    bodies = [
        (b"", "; boundary=b"),
        (head + image + b"\r\n--b--\r\n", ""),
        (head + image + b"\r\n--b--\r\n", "; boundary=c"),
        (head + image[: rng.randint(0, 50)], "; boundary=b"),
        (head + image[: len(image) // 2] + b"\r\n--b--\r\n", "; boundary=b"),
        (field % (b"other", image), "; boundary=b"),
        (field % (b"top_k", rng.choice([b"", b"x", b"-1", b"99999"])), "; boundary=b"),
        ((head + image + b"\r\n") * (limits["max_images"] + 9) + b"--b--\r\n", "; boundary=b"),
        (b"--b\r\n\r\n" + image + b"\r\n--b--\r\n", "; boundary=b"),
        (b"--b\r\n" + b"X: y\r\n" * rng.randint(10, 10_000), "; boundary=b"),
        (b"--b\r\n" + rng.randbytes(300), "; boundary=b"),
        (rng.randbytes(300), "; boundary=" + "b" * rng.randint(1, 2000)),
        (head + image, "; boundary*=utf-8''%E2%82%AC"),
        (
            b"--b\r\nContent-Disposition: form-data; name*=utf-16''%ff; filename=a\r\n\r\n",
            "; boundary=b",
        ),
    ]
    body, parameters = rng.choice(bodies)
    return request(body, f"Content-Type: multipart/form-data{parameters}")


# ---------------------------------------------------------------- HTTP


def _headers(rng: random.Random, limits: dict[str, int]) -> bytes:
    image = _file(rng, "PNG")
    kinds = ["", "text/html", "application/x-www-form-urlencoded", "\xe9", "image", "a" * 5000]
    choices = [
        request(image, f"Content-Type: {rng.choice(kinds)}"),
        request(image),
        request(
            image, "Content-Type: image/png", f"Content-Encoding: {rng.choice(['gzip', 'br'])}"
        ),
        request(
            image, "Content-Type: image/png", *[f"X-{n}: y" for n in range(rng.randint(110, 900))]
        ),
        request(image, "Content-Type: image/png", target=f"/predict?top_k={rng.choice('x0-')}"),
        request(image, "Content-Type: image/png", target="/predict/" + "../" * rng.randint(1, 99)),
        request(image, "Content-Type: image/png", method=rng.choice(["PUT", "DELETE", "BREW"])),
        request(b"", target="/page.css/../../../../etc/passwd", method="GET"),
        request(b"", target="/%00%ff%2e%2e/" + "x" * rng.randint(1, 5000), method="GET"),
    ]
    return rng.choice(choices)


def _no_http(rng: random.Random, limits: dict[str, int]) -> bytes:
    start = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
    choices = [
        rng.randbytes(rng.randint(50, 2000)) + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500) + b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /a b c HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"y" * rng.randint(300_000, 600_000),
        start + b"Content-Length: -5\r\n\r\n",
        start + b"Content-Length: five\r\n\r\nabcde",
        start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        start + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        start + b"Transfer-Encoding: gzip\r\n\r\nabcde",
        start + b"X : y\r\n\r\n",
        start + b"X\0: y\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    return rng.choice(choices)


def _too_large(rng: random.Random, limits: dict[str, int]) -> bytes:
    size = limits["max_bytes"] + rng.randint(1, 1000)
    if rng.random() < 0.5:
        return _image_request(b"\0" * size)
    start = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
    return (
        start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + b"\0" * size + b"\r\n0\r\n\r\n"
    )


_KINDS: dict[str, Callable] = {
    "no image": _no_image,
    "random bytes": _random_bytes,
    "cut short": _cut_short,
    "damaged": _damaged,
    "claims a size": _claims_size,
    "bomb": _bomb,
    "text bomb": _text_bomb,
    "many parts": _many_parts,
    "animation": _animation,
    "JSON": _json,
    "form": _form,
    "headers": _headers,
    "no HTTP": _no_http,
    "too large": _too_large,
}
