#!/usr/bin/env python3
"""Serve an exported network over HTTP, with a page to try it on.

POST /predict takes an image file, a form of several, or JSON with base64; GET / is the page,
/healthz, /metadata, /metrics (Prometheus) and /openapi.json say the rest. SIGTERM ends it after the
last answer. It knows neither passwords nor TLS: to a network show it behind a proxy that does.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import Any

import _bootstrap  # noqa: F401

from ppcls.deploy.serving import ServingConfig, require_packages
from ppcls.utils import cli, logger
from ppcls.utils.errors import UserError

EXAMPLE = """python tools/serve.py --model output/HarDNet39_ds/inference
  curl -F file=@cat.jpg http://127.0.0.1:8000/predict"""
LIMITS = {
    "max-batch": (int, "images the network computes at once"),
    "max-delay-ms": (float, "an image waits so long for others to share its batch"),
    "queue": (int, "images accepted and not yet answered; more get 503"),
    "max-images": (int, "images of one request"),
    "max-bytes": (int, "bytes of one request's body"),
    "max-pixels": (int, "pixels of one image"),
    "timeout": (float, "seconds for a body to arrive, and as many for its answer"),
}


def parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, EXAMPLE, config=False)
    parser.add_argument(
        "--model", metavar="DIR", type=Path, required=True, help="what tools/export_model.py wrote"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any (default: %(default)s)")
    parser.add_argument("--runtime", help="default: the fastest that is installed")
    parser.add_argument("--threads", type=int, help="of the network (default: one per core)")
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="(%(default)s)"
    )
    parser.add_argument(
        "--hint",
        choices=["latency", "throughput"],
        default="latency",
        help="what counts, one batch or many at a time (%(default)s)",
    )
    for name, (kind, text) in LIMITS.items():
        default = getattr(ServingConfig, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} ({default})")
    return parser


def serving_config(args: argparse.Namespace) -> ServingConfig:
    names = [name.replace("-", "_") for name in LIMITS]
    try:
        return ServingConfig(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        name, _, reason = str(error).partition(":")
        raise UserError(f"--{name.replace('_', '-')}:{reason}") from error


def load(args: argparse.Namespace) -> Any:
    """The network behind the service."""
    from ppcls.deploy import Predictor

    return Predictor(
        args.model,
        runtime=args.runtime,
        threads=args.threads,
        precision=args.precision,
        hint=args.hint,
    )


def serve(args: argparse.Namespace) -> None:
    config = serving_config(args)
    require_packages()
    logger.setup()
    # The header is looked at before; this is for a file that says one thing to Pillow and another
    # to OpenCV, which reads the variable when it is imported.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(config.max_pixels))
    from ppcls.deploy.serving import server

    listener = server.bind(args.host, args.port)
    try:
        engine = load(args)
        from ppcls.deploy.serving.app import create_app

        app = create_app(engine, config)
        if not _is_loopback(args.host):
            logging.getLogger("ppcls").warning(
                "--host %s: whoever reaches this address can use the service", args.host
            )
        server.serve(app, config, listener)
    finally:
        listener.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: list[str] | None = None) -> int:
    return cli.run(parser(), serve, argv)


if __name__ == "__main__":
    sys.exit(main())
