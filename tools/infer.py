#!/usr/bin/env python3
"""Classify an image, the images of a list, or those of a folder."""

import _bootstrap  # noqa: F401

from ppcls.utils import cli, runtime

EXAMPLE = """python tools/infer.py -c configs/HarDNet/HarDNet68.yaml \\
      -o Global.pretrained_model=hardnet68.pdparams -o Infer.infer_imgs=cat.jpg"""


def infer(args):
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build
    from ppcls.engine.classify import classify

    session = build.open_session(args.config, args.override, runtime_note)
    return {"images": classify(session)}


def main(argv=None) -> int:
    return cli.run(cli.make_parser(__doc__, EXAMPLE), infer, argv)


if __name__ == "__main__":
    raise SystemExit(main())
