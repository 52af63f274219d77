#!/usr/bin/env python3
"""Evaluate weights on the images of DataLoader.Eval: each image counts once."""

import _bootstrap  # noqa: F401

from ppcls.utils import cli, runtime

EXAMPLE = """python tools/eval.py -c configs/HarDNet/HarDNet68.yaml \\
      -o Global.pretrained_model=hardnet68.pdparams \\
      -o DataLoader.Eval.dataset.image_root=./dataset/ILSVRC2012/"""


def evaluate(args):
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build, parallel

    session = build.open_session(args.config, args.override, runtime_note)
    result = build.evaluate(session)
    parallel.stop()
    return result.to_json()


def main(argv=None) -> int:
    return cli.run(cli.make_parser(__doc__, EXAMPLE), evaluate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
