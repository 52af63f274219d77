"""Errors the tools turn into one line and exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake. The text is one sentence: where, what was expected, what was found."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """A data set, list file or image that cannot be used."""


class NotDownloaded(UserError):
    """A file that could not be fetched: which one, why, and where to put it."""


class JobError(Exception):
    """A run that failed although its input was right, such as a loss that is not finite."""


class Stopped(Exception):
    """A run that ended early because it was asked to, saved, and can go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or "" when nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
