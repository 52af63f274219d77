"""From a request's body to image files: a raw image, JSON with base64, or a multipart form."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppcls.deploy.serving.errors import RequestError
from ppcls.deploy.serving.multipart import Part, read_multipart

_TYPES = "an image (image/jpeg, image/png, ...), application/json or multipart/form-data"
_KEYS = ("images", "top_k")


@dataclass(frozen=True)
class Upload:
    """An image file and what its sender calls it."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Payload:
    """What a request asks for."""

    uploads: list[Upload] = field(default_factory=list)
    top_k: int | None = None


def read_payload(
    content_type: str, query: Mapping[str, str], body: bytes, *, max_images: int
) -> Payload:
    """Find the images in a body.

    A query parameter `top_k` stands for a body that has no place for it.

    Raises RequestError: 415 for another content type, 400 for a body that is not what its type
    says, or for no images, or for more than `max_images`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        payload = _from_json(body, max_images)
    elif kind == "multipart/form-data":
        payload = _from_parts(read_multipart(content_type, body, max_parts=max_images + 1))
    elif kind.startswith("image/") or kind == "application/octet-stream":
        payload = Payload([Upload("image", body)])
    else:
        raise RequestError(415, f"Content-Type: expected {_TYPES}, got {kind[:80]!r}")
    if not 1 <= len(payload.uploads) <= max_images:
        raise RequestError(
            400, f"expected 1 to {max_images} images in a request, found {len(payload.uploads)}"
        )
    if payload.top_k is None and "top_k" in query:
        return Payload(payload.uploads, _whole_number(query["top_k"]))
    return payload


def _from_json(body: bytes, max_images: int) -> Payload:
    # Base64 has none of these: more of them are no images, and Python's objects for them would
    # take some twenty times the body's own memory.
    if sum(body.count(mark) for mark in (b",", b"[", b"{", b":")) > 4 * max_images + 32:
        raise RequestError(
            400, f"body: expected JSON with at most {max_images} images and the key top_k, got more"
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"body: expected JSON: {_short(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise RequestError(400, 'body: expected {"images": [base64, ...]}, found other JSON')
    unknown = next((key for key in content if key not in _KEYS), None)
    if unknown is not None:
        raise RequestError(
            400, f"body: expected the keys {' and '.join(_KEYS)}, got {unknown[:80]!r}"
        )
    top_k = content.get("top_k")
    return Payload(
        [_from_base64(text, f"images[{index}]") for index, text in enumerate(content["images"])],
        None if top_k is None else _whole_number(top_k),
    )


def _from_base64(text: Any, name: str) -> Upload:
    if not isinstance(text, str):
        raise RequestError(400, f"{name}: expected base64 text, got {type(text).__name__}")
    try:
        return Upload(name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise RequestError(400, f"{name}: expected base64 text: {_short(error)}") from error


def _from_parts(parts: list[Part]) -> Payload:
    uploads: list[Upload] = []
    top_k = None
    for part in parts:
        if part.file_name is not None:
            uploads.append(Upload(_printable(part.file_name) or f"file {len(uploads)}", part.data))
        elif part.name == "top_k":
            top_k = _whole_number(part.data.decode("utf-8", "replace"))
        else:
            raise RequestError(
                400,
                f"form: expected files and the field top_k, got the field {part.name[:80]!r} "
                "without a file name",
            )
    return Payload(uploads, top_k)


def _whole_number(value: Any) -> int:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip()[:9])
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(400, f"top_k: expected a whole number, got {str(value)[:80]!r}")
    return value


def _printable(name: str) -> str:
    return "".join(letter for letter in name if letter.isprintable())[:120]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
