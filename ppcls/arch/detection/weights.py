"""Loading weights into detectors: a whole one, its trunk, or the classifier it is built on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from paddle import nn

from ppcls.arch.backbone.hardnet_plan import VARIANTS, expected_shapes
from ppcls.arch.detection.ssd_plan import SIZES, SSD_VARIANTS, SSDSpec, detector_shapes
from ppcls.arch.weights import find_weights, load_state
from ppcls.utils.errors import UserError

logger = logging.getLogger("ppcls")


def load_detector(
    model: nn.Layer, name: str, pretrained: bool | str | Path, *, new_head: bool = True
) -> list[str]:
    """Load weights into `model`, a detector called `name`, and return the tensors left new.

    `pretrained` is what `ppcls.arch.weights.find_weights` takes, here of the detector or of its
    classifier; nothing is published for True. The file's names decide what it is:

    - a whole detector (it has `extras.*`), of the same input size. If its class count is another,
      `conf.*` starts anew;
    - a trunk: all of `base`, with HarDNet68's bridge `base.13`. The rest starts anew;
    - a classifier: `base.0` to `base.12` (HarDNet68) or `base.14` (HarDNet85), which have the same
      names and shapes in both; what follows in the file is left out. The rest starts anew. Mind
      that the classifiers have seen other images (RGB, scaled, normalised) and ReLU6: it is not how
      the published detectors started.

    Files may hold Paddle's or PyTorch's names. With `new_head` False, as for an evaluation, nothing
    may start anew. Raises UserError when something does not fit; the model is then untouched.
    """
    # Imported late: `convert` builds on `arch`.
    from ppcls.convert.load import load_weights

    spec = SSD_VARIANTS[name]
    path = find_weights(pretrained, name if pretrained is True else spec.classifier)
    state = load_weights(path, name)
    is_whole = any(key.startswith("extras.") for key in state)
    if is_whole:
        anew = _other_classes(model, spec, state, path) if new_head else []
    elif new_head:
        state = _without_classifier(spec, state)
        anew = _outside_trunk(model, spec, state)
    else:
        raise UserError(f"{path}: expected the weights of a whole detector, found a trunk's")
    load_state(model, state, str(path), network=name, anew=anew)
    logger.info("weights: %d tensors from %s", len(model.state_dict()) - len(anew), path)
    if anew:
        logger.info("%d tensors start anew: %s", len(anew), ", ".join(parts(anew)))
    return anew


def parts(names: Iterable[str]) -> list[str]:
    """Return the parts of a detector that `names` belong to: `base.13`, `extras`, `loc`..."""
    split = (name.split(".") for name in names)
    return list(dict.fromkeys(".".join(n[:2]) if n[0] == "base" else n[0] for n in split))


def _other_classes(
    model: nn.Layer, spec: SSDSpec, state: Mapping[str, np.ndarray], path: Path
) -> list[str]:
    """The names of `conf` if the file's is whole and of another class count than the model's.

    Raises UserError for a detector of another input size.
    """
    shapes = {key: np.shape(value) for key, value in state.items() if key.startswith("conf.")}
    for size in SIZES:
        wanted = _conf_shapes(spec, size, 1)
        if set(wanted) != set(shapes) or not len(shapes["conf.0.bias"]):
            continue
        count = shapes["conf.0.bias"][0] // wanted["conf.0.bias"][0]
        if shapes == _conf_shapes(spec, size, count):
            if size != model.size:
                raise UserError(f"{path}: expected weights of size {model.size}, found size {size}")
            return list(shapes) if count != model.class_num else []
    return []


def _conf_shapes(spec: SSDSpec, size: int, class_num: int) -> dict[str, tuple[int, ...]]:
    shapes = detector_shapes(spec, size, class_num)
    return {key: shape for key, shape in shapes.items() if key.startswith("conf.")}


def _without_classifier(spec: SSDSpec, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out what only the classifier has: its last stage and its head."""
    kept = set(detector_shapes(spec, SIZES[0], 2))
    left_out = set(expected_shapes(VARIANTS[spec.classifier], 1)) - kept
    return {key: value for key, value in state.items() if key not in left_out}


def _outside_trunk(model: nn.Layer, spec: SSDSpec, state: Mapping[str, np.ndarray]) -> list[str]:
    """The model's names that a trunk's file lacks; a classifier's lacks `base.13.*` of HarDNet68.

    Half a trunk is not a trunk: what else is missing is for `load_state` to find.
    """
    shared = set(expected_shapes(VARIANTS[spec.classifier], 1))
    bridge = {key for key in model.state_dict() if key.startswith("base.")} - shared
    optional = set() if bridge & set(state) else bridge
    return [key for key in model.state_dict() if not key.startswith("base.") or key in optional]
