#!/usr/bin/env python3
"""Fine-tune a HarDNet on CIFAR-100 with `paddle.Model`, PaddlePaddle's high-level API.

By default images are enlarged to 256 pixels and cut to 224, as the weights were trained;
`--image-size 32` takes them as they are, with a random crop out of 4 pixels of padding and a random
flip: a fiftieth of the computation. The archive is read in memory, never unpacked.

A run is stopped and goes on with `--resume`: after whole epochs, to the same result. In many
processes (see the second example) `--batch-size` counts the images of each. OUTPUT/ARCH gets
{latest,best_model}.{pdparams,pdopt,pdstates}, which tools/eval.py and tools/infer.py read too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppcls.utils import cli, distributed, runtime, seeding  # noqa: E402
from ppcls.utils.errors import UserError  # noqa: E402

EXAMPLE = """python scripts/finetune_cifar100.py --arch HarDNet68 --epochs 10
  python -m paddle.distributed.launch --gpus=0,1 scripts/finetune_cifar100.py --resume
  python scripts/finetune_cifar100.py --evaluate --weights output/HarDNet68/best_model"""
ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
CLASSES = 100
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
INITIAL_WEIGHTS_STREAM = 3


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, EXAMPLE, config=False)
    add = parser.add_argument
    add("--arch", default="HarDNet68", help="the network (default: %(default)s)")
    add(
        "--weights",
        default="published",
        help="'published' ImageNet weights, a path, an address, a published name, or 'none'",
    )
    add("--data", type=Path, default=Path("dataset/cifar-100-python.tar.gz"), help="the archive")
    add("--output", type=Path, default=Path("output/cifar100"), help="default: %(default)s")
    add("--epochs", type=int, default=10, help="default: %(default)s")
    add("--freeze-backbone", type=int, default=0, metavar="N", help="epochs for the head alone")
    add("--batch-size", type=int, default=64, help="images per process (default: %(default)s)")
    add("--lr", type=float, default=0.01, help="at the start of the cosine (default: %(default)s)")
    add("--weight-decay", type=float, default=1e-4, help="L2 (default: %(default)s)")
    add("--image-size", type=int, default=224, help="pixels; 32 is native (default: %(default)s)")
    add("--patience", type=int, default=0, metavar="N", help="stop N epochs after the best one")
    add("--amp", action="store_true", help="mixed precision, on a GPU")
    add("--visualdl", action="store_true", help="scalars for VisualDL in OUTPUT/ARCH/vdl")
    add("--resume", action="store_true", help="go on with OUTPUT/ARCH/latest, if it is there")
    add("--evaluate", action="store_true", help="evaluate --weights, train nothing")
    add("--device", default="auto", help="auto, cpu, gpu or gpu:N (default: %(default)s)")
    add("--workers", type=int, default=2, help="processes that prepare images (default: 2)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    return parser


def check(args: argparse.Namespace) -> None:
    lows = {"epochs": 1, "batch_size": 1, "image_size": 32, "seed": 0, "workers": 0}
    for name, low in {**lows, "freeze_backbone": 0, "patience": 0, "weight_decay": 0}.items():
        if getattr(args, name) < low:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: expected {low} or more, got {getattr(args, name)}")
    if not args.lr > 0:
        raise UserError(f"--lr: expected a number > 0, got {args.lr}")
    if not args.data.is_file():
        raise UserError(
            f"{args.data}: no such file; download {ARCHIVE} (169 MB) and put it there, "
            "or name it with --data"
        )
    if args.evaluate and args.weights in ("published", "none"):
        raise UserError("--evaluate: expected --weights of a network that knows CIFAR-100")
    if args.visualdl and importlib.util.find_spec("visualdl") is None:
        raise UserError("--visualdl: expected the package 'visualdl'; pip install visualdl")


def transform_ops(size: int, *, training: bool) -> list[dict[str, Any]]:
    """The transforms of a recipe (configs/HarDNet/HarDNet68_cifar100.yaml has those of 224)."""
    normalize = {"scale": "1.0/255.0", "mean": MEAN, "std": STD, "order": ""}
    style = {"backend": "pil", "style": "torchvision"}
    if size == 32:
        larger = 40
        ops: list[dict] = [{"CropImage": {"size": larger, "style": "torchvision"}}]  # pads with 0
    else:
        larger = round(size * 256 / 224)
        resize = {"resize_short": larger, "interpolation": "bilinear", **style}
        ops = [{"ResizeImage": resize}]
    if training:  # a random part of fixed size: nothing is resized
        area = (size / larger) ** 2
        crop = {"size": size, "scale": [area, area], "ratio": [1.0, 1.0], **style}
        ops.append({"RandCropImage": crop})
        if size == 32:
            ops.append({"RandFlipImage": {"flip_code": 1}})
    else:
        ops.append({"CropImage": {"size": size, "style": "torchvision"}})
    return [*ops, {"NormalizeImage": normalize}]


def load_data(args: argparse.Namespace, mode: str) -> Any:
    from ppcls.data.datasets import Cifar100
    from ppcls.engine.callbacks import Pairs

    ops = transform_ops(args.image_size, training=mode == "train")
    return Pairs(Cifar100(str(args.data), ops, mode=mode, seed=args.seed, class_num=CLASSES))


def make_loader(data: Any, args: argparse.Namespace, *, shuffle: bool) -> Any:
    """Each process gets its share; `paddle.Model` counts no image twice when it evaluates."""
    from paddle.io import DataLoader, DistributedBatchSampler

    sampler = DistributedBatchSampler(data, args.batch_size, shuffle=shuffle)
    return DataLoader(data, batch_sampler=sampler, num_workers=args.workers, return_list=True)


def make_network(args: argparse.Namespace, arch: str, resumed: Any) -> Any:
    import paddle

    from ppcls.arch import create_model
    from ppcls.arch.weights import load_pretrained
    from ppcls.ops.accelerate import accelerate

    paddle.seed(seeding.derive(args.seed, INITIAL_WEIGHTS_STREAM))
    network = create_model(arch, class_num=CLASSES)
    # A run that goes on has its own weights.
    if args.weights != "none" and resumed is None:
        pretrained = True if args.weights == "published" else args.weights
        # What is only evaluated must bring its classifier along.
        load_pretrained(network, arch, pretrained, new_head=not args.evaluate)
    accelerate(network)  # concerns CPUs
    runtime.settle_memory(thrifty=False)
    return network


def freeze_backbone(network: Any, frozen: bool) -> None:
    """Keep the backbone's batch norms at their statistics, or let them learn again.

    Its weights stay because the optimizer of these epochs has the head's alone. In one process
    their gradients are not computed either; many processes must agree on what has a gradient.
    """
    head = {id(parameter) for parameter in network.head.parameters()}
    for name, parameter in network.named_parameters():
        if id(parameter) not in head and not name.endswith(("._mean", "._variance")):
            parameter.stop_gradient = frozen and distributed.world_size() == 1
    for layer in network.sublayers():
        if type(layer).__name__ == "BatchNorm2D":
            layer._use_global_stats = True if frozen else None


def find_checkpoint(args: argparse.Namespace, folder: Path) -> Any:
    """Return what `--resume` goes on with, or None. Raises UserError for other settings."""
    from ppcls.engine.checkpoint import newest_checkpoint

    checkpoint = newest_checkpoint(folder) if args.resume else None
    if checkpoint is None:
        return None
    saved, wanted = checkpoint.states["recipe"], settings(args)
    differing = [
        f"--{key.replace('_', '-')} was {saved.get(key)!r}, is {value!r}"
        for key, value in wanted.items()
        if saved.get(key) != value
    ]
    if differing:
        raise UserError(f"--resume: expected the settings of {folder}, but {'; '.join(differing)}")
    return checkpoint


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments on which the result depends."""
    names = ("arch", "image_size", "epochs", "batch_size", "lr", "weight_decay", "seed")
    return {name: getattr(args, name) for name in (*names, "freeze_backbone")}


def train(
    args: argparse.Namespace, model: Any, evaluation: Any, folder: Path, resumed: Any
) -> tuple[Any, dict]:
    """Train the head alone for `--freeze-backbone` epochs, then everything.

    Returns the Progress, and the scores of the last epoch, empty when there was nothing to train.
    """
    import paddle

    from ppcls.engine import callbacks
    from ppcls.engine.checkpoint import Checkpointer, Progress
    from ppcls.optimizer import build_schedule

    network, progress, scores = model.network, Progress(), {}
    data = load_data(args, "train")
    loader = make_loader(data, args, shuffle=True)
    cosine = {"name": "Cosine", "learning_rate": args.lr}
    steps = len(loader)
    schedule = build_schedule(cosine, "--lr", epochs=args.epochs, steps_per_epoch=steps)
    middle = min(args.freeze_backbone, args.epochs)
    saved = min(resumed.progress.epoch, args.epochs) if resumed else 0
    for start, end, part in ((0, middle, network.head), (middle, args.epochs, network)):
        if start == end or saved > end or is_over(args, progress):
            continue
        freeze_backbone(network, part is not network)
        optimizer = paddle.optimizer.Momentum(
            schedule.scheduler(),
            momentum=0.9,
            use_nesterov=True,
            parameters=part.parameters(),
            weight_decay=args.weight_decay,
            # The state's names in a checkpoint, which otherwise count the optimizers made before.
            name="all" if part is network else "head",
        )
        prepare(model, args, optimizer)
        checkpointer = Checkpointer(folder, network, optimizer, settings(args))
        checkpointer.register("scaler", callbacks.ModelScaler(model))
        if start < saved <= end:
            vars(progress).update(vars(checkpointer.load(resumed)[0]))
            if distributed.rank() == 0:
                checkpointer.take_over()
        if progress.epoch == end or is_over(args, progress):
            continue
        hooks = [
            callbacks.ByEpoch(progress, data, loader.batch_sampler, args.seed),
            callbacks.Log(progress, args.epochs),
            paddle.callbacks.LRScheduler(by_step=True),
        ]
        if args.visualdl:
            hooks.append(callbacks.VisualDL(progress, str(folder / "vdl")))
        if args.patience:
            hooks.append(callbacks.EarlyStopping(progress, args.patience))
        hooks.append(callbacks.Save(progress, checkpointer, scores))
        with contextlib.closing(checkpointer):
            model.fit(loader, evaluation, epochs=end - progress.epoch, verbose=0, callbacks=hooks)
    freeze_backbone(network, False)
    return progress, scores


def is_over(args: argparse.Namespace, progress: Any) -> bool:
    """Whether `--patience` has ended the run."""
    return 0 < args.patience <= progress.epoch - progress.best_epoch


def prepare(model: Any, args: argparse.Namespace, optimizer: Any = None) -> None:
    import paddle

    accuracy = paddle.metric.Accuracy(topk=(1, 5))
    amp = "O1" if args.amp else None
    model.prepare(optimizer, paddle.nn.CrossEntropyLoss(), accuracy, amp_configs=amp)


def finetune(args: argparse.Namespace) -> dict[str, Any]:
    check(args)
    runtime.import_paddle()
    for text in ("To copy construct from a tensor", "When training, we now always track"):
        warnings.filterwarnings("ignore", message=text)  # Paddle's, about itself
    import paddle

    from ppcls.arch import list_models
    from ppcls.arch.registry import canonical_name, unknown_architecture
    from ppcls.engine import parallel
    from ppcls.utils import logger as log

    arch = canonical_name(args.arch)
    if arch is None:
        raise unknown_architecture(args.arch, list_models("HarDNet*"), "--arch")
    if arch not in list_models("HarDNet*"):
        raise UserError(f"--arch: expected a classifier, {arch} is a detector")
    logger, started = log.setup(distributed.rank()), time.monotonic()
    device = parallel.select_device(args.device)
    if args.amp and not device.startswith("gpu"):
        raise UserError(f"--amp: expected a GPU, but this run is on {device}")
    logger.info(
        "paddle %s on %s, %d process(es)", paddle.__version__, device, distributed.world_size()
    )
    folder = args.output / arch
    evaluation = make_loader(load_data(args, "test"), args, shuffle=False)
    resumed = find_checkpoint(args, folder)
    model = paddle.Model(make_network(args, arch, resumed))
    result = {"arch": arch, "weights": args.weights, "image_size": args.image_size}
    scores: dict[str, float] = {}
    if not args.evaluate:
        make_folder(folder)
        progress, scores = train(args, model, evaluation, folder, resumed)
        best = {"best_top1": progress.best_metric, "best_epoch": progress.best_epoch}
        result |= {"folder": str(folder), "epochs": progress.epoch, **best}
        logger.info("best top1: %.5f (epoch %d)", progress.best_metric, progress.best_epoch)
        logger.info("the result is in %s", folder)
    if not scores:
        prepare(model, args)
        scores = model.evaluate(evaluation, verbose=0)
    top1, top5 = float(scores["acc_top1"]), float(scores["acc_top5"])
    samples, seconds = len(evaluation.dataset), time.monotonic() - started
    logger.info("top1: %.5f, top5: %.5f on %d images, %.0f s", top1, top5, samples, seconds)
    parallel.stop()
    return {**result, "top1": top1, "top5": top5, "samples": samples, "seconds": seconds}


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be made: {error.strerror}") from error


def main(argv: list[str] | None = None) -> int:
    return cli.run(make_parser(), finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
