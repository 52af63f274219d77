"""The case `save`: what checkpoints cost a training."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

from _benchmark import measure
from ppcls.utils import runtime
from ppcls.utils.errors import UserError

HELP = "what checkpoints cost a training"
EXAMPLE = "python tools/benchmark.py save -c configs/HarDNet/HarDNet39_ds_digits.yaml --json s.json"
NEEDS_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=150, help="of a turn (default: %(default)s)")
    parser.add_argument("--every", type=int, default=50, help="steps between saves")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Training with a save every so many steps against training without one."""
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build

    if args.config is None:
        raise UserError("-c: expected the recipe to train by, got none")
    if not 1 <= args.every < args.steps:
        raise UserError(
            f"--every: expected 1 to {args.steps - 1} (below --steps), got {args.every}"
        )
    blocked: list[float] = []

    def images_per_s(*overrides: str) -> float:
        """Images per second, until the last save is on the disk."""
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            common = [f"Global.output_dir={folder}", f"Global.max_steps={args.steps}"]
            quiet = ["Global.eval_during_train=False", f"Global.print_batch_step={args.steps}"]
            settings = [*args.override, *common, *quiet, *overrides]
            session = build.open_session(args.config, settings, runtime_note, training=True)
            trainer = build.build_trainer(session)
            if trainer.steps_per_epoch < args.steps:
                raise UserError(f"--steps: expected at most {trainer.steps_per_epoch}, an epoch")
            start = time.perf_counter()
            trainer.train_epoch(0)
            trainer.checkpointer.close()
            seconds = time.perf_counter() - start
            trainer.logbook.close()
        if trainer.checkpointer.saves:
            blocked.append(trainer.checkpointer.blocked / trainer.checkpointer.saves)
        images = sum(trainer.loader.sampler.global_size(step) for step in range(args.steps))
        return images / seconds

    pairs = measure.take_turns(
        lambda: images_per_s(f"Global.save_interval_steps={args.every}"), images_per_s, args.turns
    )
    sides = (f"a save every {args.every} steps", "no save")
    result = measure.row(f"train {args.steps} steps", sides, "images/s", pairs)
    result["blocked_ms_per_save"] = 1000 * statistics.median(blocked)
    return measure.report([result])
