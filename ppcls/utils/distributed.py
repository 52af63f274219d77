"""This process's place in the job, as `paddle.distributed.launch` states it in the environment."""

from __future__ import annotations

import os


def rank() -> int:
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def local_size() -> int:
    """Processes of the job on this machine."""
    return int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))


def is_launched() -> bool:
    """True under `python -m paddle.distributed.launch`, whatever the number of processes."""
    return "PADDLE_TRAINER_ID" in os.environ
