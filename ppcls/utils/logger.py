"""The project's logger: rank 0 speaks, on the screen and into the run's `train.log`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from ppcls.utils import distributed

LOGGER = logging.getLogger("ppcls")
_FORMAT = "[%(asctime)s] ppcls %(levelname)s: %(message)s"
_DATE = "%Y/%m/%d %H:%M:%S"


def setup(rank: int = 0) -> logging.Logger:
    """Print the log on standard output; ranks above 0 only warn. Calling it again is harmless."""
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    if not LOGGER.handlers:
        LOGGER.addHandler(_formatted(logging.StreamHandler(sys.stdout)))
    return LOGGER


def add_file(path: Path) -> logging.Handler:
    """Also append the log to `path`; it stays open to the end.

    Ranks above 0 write their errors there: the reason a job ended may be known to one of them only.
    """
    handler = _formatted(_LogFile(path, encoding="utf-8", delay=distributed.rank() > 0))
    handler.setLevel(logging.INFO if distributed.rank() == 0 else logging.ERROR)
    LOGGER.addHandler(handler)
    return handler


def write_to_files(message: str) -> None:
    """Write an error into the run's `train.log` alone: the screen shows it elsewhere."""
    record = LOGGER.makeRecord(LOGGER.name, logging.ERROR, "", 0, message, (), None)
    for handler in LOGGER.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


class _LogFile(logging.FileHandler):
    """A log file that says once that it cannot be written, where the standard one prints a
    traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        print(f"{self.baseFilename}: the log goes on here only: {error}", file=sys.stderr)
        LOGGER.removeHandler(self)


def _formatted(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(logging.Formatter(_FORMAT, _DATE))
    return handler
