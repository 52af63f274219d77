"""Published weights, and loading weights into networks: strict, and told what did not fit."""

from __future__ import annotations

import hashlib
import logging
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from ppcls.arch.backbone.hardnet_plan import VARIANTS, plan_units
from ppcls.arch.detection.ssd_plan import SSD_VARIANTS
from ppcls.utils.download import fetch
from ppcls.utils.errors import UserError
from ppcls.utils.safe_pickle_types import shorten

logger = logging.getLogger("ppcls")


# What is published --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """How images are prepared where an accuracy was measured; sizes in pixels, values 0 to 1."""

    backend: str  # the library that decodes and resizes
    style: str  # whose rounding of sizes
    resize_short: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def transform_ops(self) -> list[dict]:
        """The list a recipe writes under `transform_ops`."""
        resize = {"resize_short": self.resize_short, "interpolation": self.interpolation}
        normalize = {"mean": list(self.mean), "std": list(self.std)}
        return [
            {"DecodeImage": {"to_rgb": True, "channel_first": False, "backend": self.backend}},
            {"ResizeImage": {**resize, "backend": self.backend, "style": self.style}},
            {"CropImage": {"size": self.crop, "style": self.style}},
            {"NormalizeImage": {"scale": "1.0/255.0", **normalize, "order": ""}},
        ]


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file of ImageNet-1k weights.

    The accuracies, in percent on the 50,000 validation images at 224x224, are the publisher's
    statements, not measured here; None is what is not stated.
    """

    arch: str
    file: str
    urls: tuple[str, ...]
    publisher: str
    page: str  # where the publisher states the accuracy
    licence: str  # of the publisher's repository
    transform: EvalTransform
    top1: float
    top5: float | None = None
    other_name: str | None = None  # the same weights are also called so
    sha256: str | None = None  # or its first digits
    git_blob: str | None = None
    size: int | None = None  # bytes
    class_num: int = 1000


_PIL = EvalTransform(backend="pil", style="torchvision")
_OPENCV = EvalTransform(backend="cv2", style="paddleclas")
_GITHUB = "https://github.com/PingoLH/Pytorch-HarDNet"
_COMMIT = "de9662f30ffa7474c8a24b4bceb38b49be0903a0"


def _paddleclas(arch: str, top1: float, top5: float) -> PublishedWeights:
    file = f"{arch}_pretrained.pdparams"
    return PublishedWeights(
        arch=arch,
        file=file,
        urls=(f"https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{file}",),
        publisher="PaddleClas",
        page="PaddlePaddle/PaddleClas, docs/en/models/HarDNet_en.md",
        licence="Apache-2.0",
        transform=_OPENCV,
        top1=top1,
        top5=top5,
    )


def _official(arch: str, name: str, sha256: str, top1: float, git_blob: str | None = None):
    """The authors' PyTorch file. By PyTorch's convention its name ends in digits of its SHA-256;
    a file that is in the authors' repository is known by its git blob there too."""
    file, short = f"{name}-{sha256}.pth", f"{name}.pth"
    in_repository = (f"{_GITHUB}/raw/{_COMMIT}/{short}",) if git_blob else ()
    return PublishedWeights(
        arch=arch,
        file=file,
        urls=(*in_repository, f"https://ping-chao.com/hardnet/{file}"),
        publisher="the authors of HarDNet",
        page=f"{_GITHUB} (README)",
        licence="MIT",
        transform=_PIL,
        top1=top1,
        other_name=short,
        sha256=sha256,
        git_blob=git_blob,
    )


# For each network the first row is what `pretrained=True` means.
PUBLISHED: tuple[PublishedWeights, ...] = (
    _paddleclas("HarDNet39_ds", 71.33, 89.98),
    _paddleclas("HarDNet68_ds", 73.62, 91.52),
    _paddleclas("HarDNet68", 75.46, 92.65),
    _paddleclas("HarDNet85", 77.44, 93.55),
    _official(
        "HarDNet39_ds", "hardnet39ds", "0e6c6fa9", 72.1, "5b99f2587b2f28687aef03f8cf1c00dbb7c73294"
    ),
    _official(
        "HarDNet68_ds", "hardnet68ds", "632474d2", 74.3, "f036deac5ad828a7838dc8101cd66112bcb55ec0"
    ),
    _official(
        "HarDNet68", "hardnet68", "5d684880", 76.5, "1cf247ba4935866c16d0f02c886797f860fb1366"
    ),
    _official("HarDNet85", "hardnet85", "a28faa00", 78.0),
)


def published(name: str) -> PublishedWeights | None:
    """Return the file a user means by `name`: a network or a file, in any case, or its address."""
    for row in PUBLISHED:
        names = {row.arch, row.file, row.file.rsplit(".", 1)[0], row.other_name}
        if name in row.urls or name.lower() in {n.lower() for n in names if n}:
            return row
    return None


# From what a user writes to a file ----------------------------------------------------------------


def weights_file(path: str | Path) -> Path:
    """Return the weight file a user means by `path`: with or without `.pdparams`.

    Raises UserError when there is no such file.
    """
    given = Path(path)
    for candidate in (given, given.with_name(given.name + ".pdparams")):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: no such weight file (nor {given.name}.pdparams beside it)")


def find_weights(pretrained: bool | str | Path, arch: str | None) -> Path:
    """Return the file for `pretrained`: True (what is published for `arch`), a path, an address,
    or a published name such as "HarDNet68" or "hardnet68-5d684880.pth"; a local file comes first.

    Downloads what is not in the cache. Raises UserError when there is nothing to be had.
    """
    if pretrained is True:
        row = published(arch or "")
        if row is None:
            raise UserError("pretrained: no weights are published for this network; name a file")
        return _fetch_published(row, arch)
    name = str(pretrained)
    row = published(name)
    if "://" in name and row is None:
        return _fetch_address(name)
    try:
        return weights_file(name)
    except UserError:
        if row is None:
            raise
    return _fetch_published(row, arch)


def _fetch_published(row: PublishedWeights, arch: str | None) -> Path:
    if arch is not None and arch != row.arch:
        raise UserError(f"{row.file}: expected weights of {arch}, these are those of {row.arch}")
    logger.info(
        "%s by %s: top-1 %.2f %% on ImageNet-1k by their own measurement",
        row.file,
        row.publisher,
        row.top1,
    )
    return fetch(row.urls, row.file, sha256=row.sha256, git_blob=row.git_blob, size=row.size)


def _fetch_address(url: str) -> Path:
    """Addresses share the cache: the file's name there begins with a digest of the address."""
    last = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
    plain = re.sub(r"[^\w.+-]", "_", last, flags=re.ASCII)[-100:] or "weights"
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{plain}"
    return fetch(url, name, sha256=None, use_mirror=False)


# Into a network -----------------------------------------------------------------------------------


def load_pretrained(
    model: nn.Layer,
    name: str | None,
    pretrained: bool | str | Path,
    *,
    new_head: bool = True,
) -> None:
    """Load weights into `model`, a network of the architecture `name` (None: not one of ours).

    `pretrained` is what `find_weights` takes; False does nothing. A file may hold Paddle's or
    PyTorch's weights. A network without classifier leaves the file's out; with `new_head`, one of
    another class count keeps its own, newly drawn, and says so. All else must fit: UserError.
    For a detector see `ppcls.arch.detection.weights.load_detector`.
    """
    if pretrained is False:
        return
    # Imported late: both build on this module.
    from ppcls.arch.detection.weights import load_detector
    from ppcls.convert.load import load_weights

    if name in SSD_VARIANTS:
        load_detector(model, name, pretrained, new_head=new_head)
        return

    path = find_weights(pretrained, name)
    state = load_weights(path, name)
    target = model.state_dict()
    own_head = _head_names(name, target)
    left_out = set(_ours(name)) - set(own_head)
    state = {key: value for key, value in state.items() if key not in left_out}
    head = own_head if new_head else ()
    kept = load_state(model, state, str(path), new_head=head, network=name)
    logger.info("weights: %s", path)
    if kept:
        logger.info("new classifier, other class count: %s start anew", ", ".join(kept))


def _ours(arch: str | None) -> tuple[str, ...]:
    """The names of the classifier of one of this project's networks; none for another's."""
    if arch not in VARIANTS:
        return ()
    head = f"base.{len(plan_units(VARIANTS[arch]))}.3"
    return f"{head}.weight", f"{head}.bias"


def _head_names(arch: str | None, target: Mapping[str, paddle.Tensor]) -> tuple[str, ...]:
    """The names of the classifier `target` has: weight and bias, or nothing.

    Of a network that is not ours, it is a linear layer at the end.
    """
    if arch in VARIANTS:
        return tuple(name for name in _ours(arch) if name in target)
    last = tuple(target)[-2:]
    return last if [target[name].ndim for name in last] == [2, 1] else ()


def load_state(
    model: nn.Layer,
    state: Mapping[str, np.ndarray],
    source: str,
    *,
    new_head: Sequence[str] = (),
    anew: Sequence[str] = (),
    network: str | None = None,
) -> list[str]:
    """Copy `state` into `model` and return the names that were left as they are.

    Every tensor must fit by name, shape and kind, and be finite. `new_head` names the weight and
    the bias of a classifier that may be of another class count in the file: both are then left
    out. `anew` names tensors that are left out in any case, whether the file has them or not.
    Floating tensors take the model's dtype. `network` is what errors call the model.

    Raises UserError listing what does not fit; the model is then untouched.
    """
    kept = check_state(model, state, source, new_head=new_head, anew=anew, network=network)
    # With AMP's O2 a hook makes the state dict one of float32 copies: these are the tensors.
    for name, tensor in model.state_dict(use_hook=False).items():
        if name not in kept:
            value = np.ascontiguousarray(state[name])
            tensor.set_value(paddle.to_tensor(value, place=tensor.place).astype(tensor.dtype))
    return kept


def check_state(
    model: nn.Layer,
    state: Mapping[str, np.ndarray],
    source: str,
    *,
    new_head: Sequence[str] = (),
    anew: Sequence[str] = (),
    network: str | None = None,
) -> list[str]:
    """Return what `load_state` would, or raise what it would, and change nothing."""
    target = model.state_dict(use_hook=False)
    kept = [*anew, *(new_head if _is_other_head(target, state, new_head) else ())]
    compared = [name for name in target if name in state and name not in kept]
    shapes = {name: (list(np.shape(state[name])), list(target[name].shape)) for name in compared}
    wrong = [f"{name} {a} for {b}" for name, (a, b) in shapes.items() if a != b]
    kinds = [name for name in compared if not _is_same_kind(state[name], target[name])]
    found = {
        "missing": [name for name in target if name not in state and name not in kept],
        "unexpected": [name for name in state if name not in target],
        "wrong shape": wrong,
        "of another kind of number": kinds,
        "not finite": [
            name for name in compared if name not in kinds and not np.isfinite(state[name]).all()
        ],
    }
    problems = [_list(what, names) for what, names in found.items() if names]
    if problems:
        label = network or type(model).__name__
        raise UserError(f"{source}: does not fit {label}: {'; '.join(problems)}")
    return kept


def _list(what: str, names: list[str]) -> str:
    shown = ", ".join(shorten(name)[1:-1] for name in names[:3])
    return f"{len(names)} {what} ({shown}{', ...' if len(names) > 3 else ''})"


def _is_same_kind(value: np.ndarray, tensor: paddle.Tensor) -> bool:
    return np.asarray(value).dtype.kind in ("f" if tensor.is_floating_point() else "iu")


def _is_other_head(
    target: Mapping[str, paddle.Tensor], state: Mapping[str, np.ndarray], names: Sequence[str]
) -> bool:
    """Whether the file has a whole classifier that differs from the target's in classes alone."""
    if len(names) != 2 or any(name not in state or name not in target for name in names):
        return False
    weight, bias = (np.shape(state[name]) for name in names)
    features, classes = target[names[0]].shape
    return (
        len(weight) == 2 and len(bias) == 1 and weight == (features, bias[0]) and bias[0] != classes
    )
