#!/usr/bin/env python3
"""Train a network from a YAML recipe, in one process or many."""

import _bootstrap  # noqa: F401

from ppcls.utils import cli, runtime

EXAMPLE = """python tools/train.py -c configs/HarDNet/HarDNet39_ds_digits.yaml -o Global.epochs=1
  python -m paddle.distributed.launch tools/train.py -c configs/HarDNet/HarDNet68.yaml"""


def train(args):
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build, parallel

    session = build.open_session(args.config, args.override, runtime_note, training=True)
    trainer = build.build_trainer(session)
    progress = trainer.fit()
    parallel.stop()
    return trainer.summary(progress)


def main(argv=None) -> int:
    return cli.run(cli.make_parser(__doc__, EXAMPLE), train, argv)


if __name__ == "__main__":
    raise SystemExit(main())
