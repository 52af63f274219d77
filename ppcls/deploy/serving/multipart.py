"""The parts of a multipart/form-data body that is in memory already."""

from __future__ import annotations

from dataclasses import dataclass

from ppcls.deploy.serving.errors import RequestError

_MAX_HEADER_BYTES = 8192  # of all headers of one part


@dataclass
class Part:
    """A field of a form. `file_name` is None for one that is no file."""

    name: str = ""
    file_name: str | None = None
    data: bytes = b""


def read_multipart(content_type: str, body: bytes, *, max_parts: int) -> list[Part]:
    """Return the fields of a form, in order.

    Starlette's own reader would write bodies of a megabyte or more to the disk. Raises RequestError
    (400) for a body that is no such form, is cut short, or has more than `max_parts` fields.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    boundary = _options(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError(400, "Content-Type: expected a boundary, found none")
    reader = _Reader(max_parts)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        reason = " ".join(str(error).split())[:120]
        raise RequestError(400, f"body: expected multipart/form-data: {reason}") from error
    if not reader.is_whole:
        raise RequestError(400, "body: expected the closing boundary of the form, found none")
    return reader.parts


def _options(header: str | bytes | None) -> tuple[bytes, dict[bytes, bytes]]:
    from python_multipart.multipart import parse_options_header

    try:
        return parse_options_header(header)
    except ValueError as error:  # letters that Latin-1 does not have
        raise RequestError(400, "form: expected headers in Latin-1, found others") from error


class _Reader:
    """Collects what the parser calls out."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.is_whole = False
        self._max_parts = max_parts
        self._data = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._key, self._value = bytearray(), bytearray()
        self._header_bytes = 0

    def callbacks(self) -> dict:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(self._key, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(self._value, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise RequestError(400, f"form: expected at most {self._max_parts} fields, found more")
        self.parts.append(Part())
        self._headers, self._data, self._header_bytes = {}, bytearray(), 0

    def _grow(self, text: bytearray, more: bytes) -> None:
        self._header_bytes += len(more)
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise RequestError(
                400, f"form: expected headers of at most {_MAX_HEADER_BYTES} bytes, found more"
            )
        text += more

    def _end_header(self) -> None:
        self._headers[bytes(self._key).lower()] = bytes(self._value)
        self._key, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        kind, options = _options(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise RequestError(
                400, "form: expected a Content-Disposition with a name in every field"
            )
        part = self.parts[-1]
        part.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            part.file_name = options[b"filename"].decode("utf-8", "replace")

    def _end_part(self) -> None:
        self.parts[-1].data = bytes(self._data)
        self._data = bytearray()

    def _end(self) -> None:
        self.is_whole = True
