"""What every tool shares: its options, its exit codes and its JSON result."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ppcls.utils import distributed, logger
from ppcls.utils.errors import JobError, Stopped, UserError
from ppcls.utils.fileio import atomic_write_text, to_json

EXIT_OK, EXIT_FAILED, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, can go on


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"error: {self.prog}: {message} (see {self.prog} -h)\n")


def make_parser(
    description: str, example: str, *, config: bool = True, config_required: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with `--json` and `--debug`, and with `config` also `-c` and `-o`."""
    parser = _Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if config:
        parser.add_argument(
            "-c", "--config", required=config_required, metavar="YAML", help="the recipe"
        )
        parser.add_argument(
            "-o",
            "--override",
            action="extend",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="change one value, e.g. Global.epochs=1; may be repeated",
        )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_test_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that set `Global.test_size` and `test_crop_ratio` (`test_overrides`)."""
    parser.add_argument(
        "--test-size",
        metavar="N",
        help="side of the images in pixels: Global.test_size",
    )
    parser.add_argument(
        "--crop-ratio",
        metavar="X",
        help="with --test-size: its part of the resized shorter side (default: the recipe's): "
        "Global.test_crop_ratio",
    )


def add_flip_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that sets `Global.test_flip` (`test_overrides`)."""
    parser.add_argument(
        "--flip",
        action="store_true",
        help="average the logits of an image and its mirror image: Global.test_flip",
    )


def test_overrides(args: argparse.Namespace) -> list[str]:
    """The overrides of a recipe that `add_test_options` and `add_flip_option` stand for."""
    values = {"test_size": args.test_size, "test_crop_ratio": args.crop_ratio}
    given = [f"Global.{key}={value}" for key, value in values.items() if value is not None]
    return given + (["Global.test_flip=True"] if getattr(args, "flip", False) else [])


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], Mapping[str, Any] | None],
    argv: list[str] | None = None,
) -> int:
    """Parse, run `command`, write its result to `--json`, and return the exit code.

    0; 2 with one line for a user's mistake (UserError); 1 for a job that failed, with one line
    for a JobError and a traceback for anything else; 75 when it was asked to stop and can go on;
    130 when interrupted.
    """
    args = parser.parse_args(argv)
    try:
        if args.json and not args.json.absolute().parent.is_dir():
            raise UserError(f"--json {args.json}: expected a folder that exists")
        result = command(args)
        if args.json and result is not None and distributed.rank() == 0:
            atomic_write_text(args.json, to_json(result, indent=2) + "\n")
    except (UserError, JobError) as error:
        if args.debug:
            traceback.print_exc()
        rank = f"rank {distributed.rank()}: " if distributed.world_size() > 1 else ""
        line = f"error: {rank}{' '.join(str(error).split())}"
        logger.write_to_files(line)
        print(line, file=sys.stderr)
        return EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
    except Stopped as stopped:
        logger.LOGGER.info("%s", stopped)
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:
        # Many ranks end together: the run's own log tells which of them was the first, and why.
        rank = f"rank {distributed.rank()}: " if distributed.world_size() > 1 else ""
        logger.write_to_files(f"error: {rank}{traceback.format_exc()}")
        raise
    return EXIT_OK
