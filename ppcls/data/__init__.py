"""Data sets, transforms, samplers and the loader that joins them.

    YAML section --build_dataset--> dataset --sampler's keys--> workers --> Loader --> Batch

Everything here except `loader` works without Paddle.
"""

# Pillow first: imported after Paddle, some wheels of the two disagree about their image libraries.
from PIL import Image  # noqa: F401
