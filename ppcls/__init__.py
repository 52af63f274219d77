"""HarDNet for PaddlePaddle."""

# Paddle 2.6 exports a zlib of its own, with which Python's crashes when it is loaded later.
import zlib  # noqa: F401
