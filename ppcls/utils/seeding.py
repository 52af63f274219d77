"""Seeds that depend on their parts alone, for generators outside the data pipeline."""

from __future__ import annotations

import numpy as np


def derive(*parts: int) -> int:
    """Return a 32-bit seed that is a fixed function of whole numbers >= 0."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
