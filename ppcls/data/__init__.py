"""Data sets, transforms, samplers and the loader that joins them.

    YAML section --build_dataset--> dataset --sampler's keys--> workers --> Loader --> Batch

Data sets and transforms work without Paddle. `pipeline` says which way images take.
"""

# Pillow first: imported after Paddle, some wheels of the two disagree about their image libraries.
from PIL import Image  # noqa: F401
