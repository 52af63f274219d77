#!/usr/bin/env python3
"""Kill a training again and again, start it again each time, and compare its end with that of a run
nobody disturbed: the weights and every record of metrics.jsonl, bit for bit.

The training is HarDNet39_ds on the digits, with augmentation, dropout and accumulated gradients,
and saves every few steps; `-o` adds to the recipe, such as an average of the weights, which is then
compared too. SIGKILL comes at random moments, among them moments inside a save. With --processes 2
it runs under scripts/train_supervised.sh and paddle.distributed.launch, and one random rank is
killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Also from a clone that is not installed.
sys.path.insert(0, str(ROOT))

from ppcls.engine.checkpoint_store import EMA, CheckpointStore  # noqa: E402
from ppcls.utils.cli import make_parser, run  # noqa: E402
from ppcls.utils.errors import JobError, UserError  # noqa: E402
from ppcls.utils.pdparams import load_paddle_file, load_paddle_state_dict  # noqa: E402

EXAMPLE = "python scripts/soak.py --kills 100 --inside-saves 20"
CONFIG = ROOT / "configs" / "HarDNet" / "HarDNet39_ds_digits.yaml"
TIMING = ("batch_cost", "reader_cost", "ips")
PATIENCE = 600  # seconds without an end after which a run counts as hanging


@dataclass
class Tally:
    """What happened. The last four must be 0."""

    kills: int = 0
    kills_inside_a_save: int = 0
    lives: int = 0
    rounds: int = 0
    steps_per_round: int = 0
    completed_saves: int = 0
    unreadable_states: int = 0
    lost_saves: int = 0
    rounds_with_other_weights: int = 0
    rounds_with_other_records: int = 0
    seconds: float = 0.0
    largest_difference: float = field(default=0.0)

    def failures(self) -> int:
        return (
            self.unreadable_states
            + self.lost_saves
            + self.rounds_with_other_weights
            + self.rounds_with_other_records
        )


class Job:
    """One command of training, in an output folder of its own."""

    def __init__(self, args: argparse.Namespace, work: Path, name: str) -> None:
        self.processes = args.processes
        self.work = work
        self.output = work / name
        self.folder = self.output / "HarDNet39_ds"
        self.overrides = _overrides(args, self.output)
        self.log = work / f"{name}.log"

    def start(self) -> subprocess.Popen:
        train = [str(ROOT / "tools" / "train.py"), "-c", str(CONFIG), "-o", *self.overrides]
        if self.processes == 1:
            command = [sys.executable, *train]
        else:
            launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node"]
            launch += [str(self.processes), "--log_dir", str(self.output / "log"), *train]
            supervisor = str(ROOT / "scripts" / "train_supervised.sh")
            options = ["--max-restarts", "1000", "--backoff", "0", "--max-quick", "0", "--"]
            command = ["bash", supervisor, *options, *launch]
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.work,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PPCLS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def victims(self, process: subprocess.Popen) -> list[int]:
        """Process ids of what may be killed: the training itself, or its ranks."""
        if self.processes == 1:
            return [process.pid]
        return [pid for pid in _all_pids() if _is_rank(pid, str(self.output))]

    def records(self) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if key not in TIMING}
            for line in lines
        ]

    def weights(self) -> dict[str, np.ndarray]:
        """The weights, and their average if the recipe has one."""
        weights = load_paddle_state_dict(self.folder / "latest.pdparams")
        averages = self.folder / f"latest{EMA}"
        if averages.is_file():
            found = load_paddle_state_dict(averages)
            weights |= {f"average of {name}": array for name, array in found.items()}
        return weights


def _overrides(args: argparse.Namespace, output: Path) -> list[str]:
    lists = "dataset/digits"
    return [
        f"Global.output_dir={output}",
        "Global.auto_resume=True",
        "Global.device=cpu",
        f"Global.epochs={args.epochs}",
        f"Global.save_interval_steps={args.save_every}",
        "Global.print_batch_step=1",
        "Global.update_freq=3",
        "Global.save_interval=1",
        "Global.check_ranks_interval=5",
        "Arch.dropout=0.2",
        "Optimizer.lr.warmup_epoch=1",
        f"DataLoader.Train.dataset.cls_label_path={lists}/soak_train.txt",
        f"DataLoader.Eval.dataset.cls_label_path={lists}/soak_val.txt",
        f"DataLoader.Train.sampler.batch_size={args.batch_size // args.processes}",
        *args.override,
    ]


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _is_rank(pid: int, output: str) -> bool:
    """Whether a process is one of the job's ranks (the launcher names no rank in its own)."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        if f"Global.output_dir={output}\0" not in command or "paddle.distributed" in command:
            return False
        return b"PADDLE_TRAINER_ID=" in Path(f"/proc/{pid}/environ").read_bytes()
    return False


class Killer:
    """Chooses moments, kills, and looks at what is left."""

    def __init__(self, tally: Tally, rng: random.Random, startup: float, args: Any) -> None:
        self.tally, self.rng, self.startup = tally, rng, startup
        self.kills, self.inside_saves = args.kills, args.inside_saves
        self.longest = args.longest_life

    def is_done(self) -> bool:
        missing = self.inside_saves - self.tally.kills_inside_a_save
        return self.tally.kills >= self.kills and missing <= 0

    def live_and_die(self, job: Job, process: subprocess.Popen) -> bool:
        """Kill after some time; False when the job ended by itself before."""
        store = CheckpointStore(job.folder)
        if self.tally.kills_inside_a_save < self.inside_saves and self.rng.random() < 0.5:
            self._sleep(process, self.startup + self.rng.uniform(0, self.longest / 2))
            _await_a_save(job, process)
            time.sleep(self.rng.uniform(0, 0.02))
        else:
            early = self.rng.random() < 0.2
            low, high = (0.0, self.startup) if early else (self.startup, 0.0)
            self._sleep(process, self.rng.uniform(low, max(high, low + self.longest)))
        before = store.serials()
        victims = job.victims(process)
        if process.poll() is not None or not victims:
            return process.poll() is None
        os.kill(self.rng.choice(victims), signal.SIGKILL)
        if job.processes == 1:
            process.wait()
        else:
            _await_end_of(victims, process)
        self.tally.kills += 1
        self._look_at(job, store, before)
        return True

    def _sleep(self, process: subprocess.Popen, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    def _look_at(self, job: Job, store: CheckpointStore, before: list[int]) -> None:
        unfinished = _unfinished(job.folder)
        self.tally.kills_inside_a_save += bool(unfinished)
        after = store.serials()
        if before and (not after or after[-1] < before[-1]):
            self.tally.lost_saves += 1
        for serial in after:
            if not _is_readable(store, serial):
                self.tally.unreadable_states += 1


def _await_a_save(job: Job, process: subprocess.Popen) -> None:
    """Return as soon as a save is under way, or the job has ended."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if _unfinished(job.folder):
            return
        time.sleep(0.0005)


def _await_end_of(pids: list[int], process: subprocess.Popen) -> None:
    """Wait until all ranks of a job whose rank was killed have gone: the job must not hang."""
    end = time.monotonic() + PATIENCE
    while any(_is_alive(pid) for pid in pids):
        if process.poll() is not None:
            return
        if time.monotonic() > end:
            raise JobError(f"ranks {pids} still live {PATIENCE} s after one of them was killed")
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _unfinished(folder: Path) -> bool:
    """Whether a set is being written: it has files, but no manifest yet, or names to be made."""
    with contextlib.suppress(OSError):
        names = os.listdir(folder / "sets") + os.listdir(folder)
        finished = {name[:-5] for name in names if name.endswith(".json")}
        return any(
            name.endswith(".tmp")
            or (name.startswith("save_") and name.partition(".")[0] not in finished)
            for name in names
        )
    return False


def _is_readable(store: CheckpointStore, serial: int) -> bool:
    complaint, saved = store.check(store.stem(serial))
    if saved is None:
        print(f"unreadable: {complaint}", file=sys.stderr)
        return False
    for suffix in saved.suffixes:
        load_paddle_file(saved.file(suffix))
    return True


def undisturbed(job: Job, tally: Tally) -> float:
    """Run to the end; return the seconds until its first record."""
    start, first = time.monotonic(), None
    process = job.start()
    while process.poll() is None:
        if first is None and _size(job.folder / "metrics.jsonl"):
            first = time.monotonic() - start
        time.sleep(0.02)
    _require_success(job, process)
    tally.steps_per_round = job.records()[-1]["global_step"]
    return first or 1.0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _require_success(job: Job, process: subprocess.Popen) -> None:
    if process.wait(PATIENCE) != 0:
        tail = job.log.read_text(errors="replace").splitlines()[-15:]
        raise JobError(f"training ended with exit code {process.returncode}: {' | '.join(tail)}")


def disturbed(job: Job, tally: Tally, killer: Killer) -> None:
    """One round: start, kill and start again, until it ends."""
    while True:
        process = job.start()
        tally.lives += 1
        try:
            if killer.is_done() or not _killed(job, process, killer):
                _require_success(job, process)
                break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _show(tally)
    tally.rounds += 1
    tally.completed_saves += max(CheckpointStore(job.folder).serials(), default=0)


def _killed(job: Job, process: subprocess.Popen, killer: Killer) -> bool:
    """Kill until the job is gone; a supervised one goes on by itself, and is killed again."""
    if job.processes == 1:
        return killer.live_and_die(job, process)
    while not killer.is_done() and killer.live_and_die(job, process):
        killer.tally.lives += 1
        _show(killer.tally)
    return False


def _show(tally: Tally) -> None:
    print(
        f"kills {tally.kills} ({tally.kills_inside_a_save} inside a save), rounds {tally.rounds}, "
        f"failures {tally.failures()}",
        flush=True,
    )


def compare(job: Job, reference: Job, tally: Tally) -> None:
    wanted, found = reference.weights(), job.weights()
    differences = [
        float(np.abs(found[name].astype("float64") - array).max(initial=0.0))
        for name, array in wanted.items()
        if name in found
    ]
    tally.largest_difference = max(tally.largest_difference, *differences)
    same = found.keys() == wanted.keys()
    same = same and all(np.array_equal(found[name], array) for name, array in wanted.items())
    tally.rounds_with_other_weights += not same
    tally.rounds_with_other_records += job.records() != reference.records()


def prepare(args: argparse.Namespace, work: Path) -> None:
    """Write the digits and two short lists of them."""
    digits = work / "dataset" / "digits"
    script = ROOT / "scripts" / "prepare_digits.py"
    subprocess.run(
        [sys.executable, str(script), str(digits)], check=True, stdout=subprocess.DEVNULL
    )
    for half, count in (("train", args.images), ("val", 40)):
        lines = (digits / f"{half}_list.txt").read_text().splitlines(keepends=True)
        chosen = lines[:: max(1, len(lines) // count)][:count]
        (digits / f"soak_{half}.txt").write_text("".join(chosen))


@contextlib.contextmanager
def workspace(args: argparse.Namespace) -> Iterator[Path]:
    """The folder of all runs; kept when it was named, or when something went wrong."""
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
        yield args.work.resolve()
        return
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        yield work
    except BaseException:
        print(f"the runs are in {work}", file=sys.stderr)
        raise
    shutil.rmtree(work)


def soak(args: argparse.Namespace) -> dict[str, Any]:
    check(args)
    start, tally = time.monotonic(), Tally()
    with workspace(args) as work:
        prepare(args, work)
        reference = Job(args, work, "reference")
        startup = undisturbed(reference, tally)
        print(
            f"undisturbed: {tally.steps_per_round} steps, {startup:.1f} s to the first", flush=True
        )
        killer = Killer(tally, random.Random(args.seed), startup, args)
        while not killer.is_done() or not tally.rounds:
            job = Job(args, work, f"round_{tally.rounds + 1}")
            disturbed(job, tally, killer)
            compare(job, reference, tally)
        tally.seconds = round(time.monotonic() - start, 1)
        show_table(tally)
        if tally.failures():
            raise JobError(f"expected runs that end as if undisturbed, found {tally.failures()}")
    return asdict(tally)


def show_table(tally: Tally) -> None:
    for name, value in asdict(tally).items():
        print(f"{name.replace('_', ' '):<28} {value}")


def check(args: argparse.Namespace) -> None:
    low = {"kills": 0, "inside_saves": 0, "processes": 1, "epochs": 2, "images": 8, "batch_size": 1}
    for name, least in {**low, "save_every": 1}.items():
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: expected {least} or more, got {getattr(args, name)}")
    if args.batch_size % args.processes:
        raise UserError(f"--batch-size: expected a multiple of {args.processes} processes")
    if not sys.platform.startswith("linux"):
        raise UserError("expected Linux, whose /proc tells the ranks of a job")


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, EXAMPLE, config=False)
    parser.add_argument("--kills", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--inside-saves", type=int, default=2, help="at least so many of them")
    parser.add_argument("--processes", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=240, help="training images")
    parser.add_argument("--batch-size", type=int, default=8, help="images per step, in all")
    parser.add_argument("--save-every", type=int, default=2, help="steps between saves")
    parser.add_argument("--longest-life", type=float, default=4.0, help="seconds after starting up")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "-o", "--override", nargs="+", action="extend", default=[], metavar="KEY=VALUE"
    )
    parser.add_argument("--work", type=Path, help="folder of the runs, kept (default: temporary)")
    return parser


def main(argv: list[str] | None = None) -> int:
    return run(parser(), soak, argv)


if __name__ == "__main__":
    sys.exit(main())
