"""Seeds that depend on their parts alone, for generators outside the data pipeline."""

from __future__ import annotations

import random

import numpy as np

_HOST_STREAM = 6


def derive(*parts: int) -> int:
    """Return a 32-bit seed that is a fixed function of whole numbers >= 0."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_host(seed: int, rank: int) -> None:
    """Seed NumPy's and Python's global generators, which nothing of this project draws from, for
    what a user adds to it."""
    np.random.seed(derive(seed, rank, _HOST_STREAM))
    random.seed(derive(seed, rank, _HOST_STREAM))
