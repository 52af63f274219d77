#!/usr/bin/env python3
"""Classify images, or detect objects in them: an image, those of a list, or those of a folder."""

import _bootstrap  # noqa: F401

from ppcls.utils import cli, runtime

EXAMPLE = """python tools/infer.py -c configs/HarDNet/HarDNet68.yaml \\
      -o Global.pretrained_model=hardnet68.pdparams -o Infer.infer_imgs=cat.jpg"""


def infer(args):
    runtime_note = runtime.import_paddle()
    from ppcls.engine import build
    from ppcls.engine.classify import classify
    from ppcls.engine.detect import detect

    session = build.open_session(args.config, args.override, runtime_note)
    is_detection = session.recipe.Global.task == "detection"
    return {"images": detect(session) if is_detection else classify(session)}


def main(argv=None) -> int:
    return cli.run(cli.make_parser(__doc__, EXAMPLE), infer, argv)


if __name__ == "__main__":
    raise SystemExit(main())
