"""What a client is told when its request cannot be answered."""

from __future__ import annotations


class RequestError(Exception):
    """An answer that is no prediction. The text is one sentence: where, expected, found.

    Args:
        status: of HTTP, 4xx for the client's mistake and 503 or 504 for a server that is busy.
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class ClientGone(Exception):
    """The client closed the connection: nobody reads the answer."""
