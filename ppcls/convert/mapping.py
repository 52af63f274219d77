"""Names and layouts of weights in PyTorch and in Paddle, both ways, as data.

The official names are kept on both sides; what differs is said once:

- batch norm: `running_mean`, `running_var` are `_mean`, `_variance` in Paddle, which has no counter
  `num_batches_tracked` (dropped; zero on the way back);
- linear weights are [out, in] in PyTorch and [in, out] in Paddle;
- a detector's trunk is a file without the prefix `base.` in PyTorch.

A network is a row of `architectures.py`: the shapes it expects in Paddle, and which of its tensors
are linear weights. Whatever is missing, unexpected or of another shape is one ConversionError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ppcls.convert.architectures import (
    Architecture,
    Shapes,
    architectures,
    canonical_name,
    find_architecture,
)
from ppcls.utils.errors import UserError
from ppcls.utils.safe_pickle_types import shorten

__all__ = [
    "ConversionError",
    "architectures",
    "canonical_name",
    "class_count",
    "closest",
    "describe",
    "find_architecture",
    "paddle_name",
    "paddle_to_torch",
    "recognise",
    "torch_name",
    "torch_names",
    "torch_to_paddle",
]

State = dict[str, np.ndarray]

COUNTER = "num_batches_tracked"
# (PyTorch, Paddle) endings of a name, after the last dot.
SUFFIXES = (("running_mean", "_mean"), ("running_var", "_variance"))
_TO_PADDLE = dict(SUFFIXES)
_TO_TORCH = {paddle: torch for torch, paddle in SUFFIXES}


class ConversionError(UserError):
    """Weights that are not those of the network: what is missing, unexpected, wrongly shaped."""

    def __init__(
        self,
        reason: str,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        wrong_shape: Iterable[str] = (),
    ) -> None:
        self.missing, self.unexpected = list(missing), list(unexpected)
        self.wrong_shape = list(wrong_shape)
        lists = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.wrong_shape,
        }
        details = [f"{len(names)} {what} ({_few(names)})" for what, names in lists.items() if names]
        super().__init__(": ".join([reason, "; ".join(details)]) if details else reason)


def _few(names: list[str]) -> str:
    """The first names, which may come from a file: escaped and cut, without quotes."""
    first = [shorten(name).strip("'\"") for name in names[:3]]
    return ", ".join(first) + (", ..." if len(names) > 3 else "")


# Names ------------------------------------------------------------------------------------------


def paddle_name(name: str) -> str | None:
    """Return Paddle's name of a PyTorch tensor, None for a counter Paddle does not keep."""
    stem, dot, last = name.rpartition(".")
    return None if last == COUNTER else stem + dot + _TO_PADDLE.get(last, last)


def torch_name(name: str) -> str:
    """Return PyTorch's name of a Paddle tensor."""
    stem, dot, last = name.rpartition(".")
    return stem + dot + _TO_TORCH.get(last, last)


def torch_names(arch: str, class_num: int | None = None) -> dict[str, str | None]:
    """Map PyTorch's names, in PyTorch's order, to Paddle's; counters map to None."""
    row = find_architecture(arch)
    names: dict[str, str | None] = {}
    for name in row.shapes(class_num or row.class_num):
        official = torch_name(name).removeprefix(row.prefix)
        names[official] = name
        stem, _, last = official.rpartition(".")
        if last == SUFFIXES[-1][0]:  # the last of a batch norm: the counter follows
            names[f"{stem}.{COUNTER}"] = None
    return names


# Conversion -------------------------------------------------------------------------------------


def torch_to_paddle(
    state: Mapping[str, np.ndarray], arch: str, class_num: int | None = None
) -> State:
    """Return Paddle's state dict of network `arch` from PyTorch's, in the network's order.

    Numbers become float32. `class_num` is the class count of `state` where it is not the official
    one; of a detector it is seen from the weights. Raises ConversionError with all that does not
    fit.
    """
    row = find_architecture(arch)
    classes = _classes(state, row, class_num)
    shapes, names = row.shapes(classes), torch_names(arch, classes)
    sources = {source: name for name, source in names.items() if source is not None}
    torch_side = {sources[name]: _flip(name, shape, row) for name, shape in shapes.items()}
    given = {name: value for name, value in state.items() if paddle_name(name) is not None}
    unknown_counters = [name for name in state if name not in given and name not in names]
    _check(given, torch_side, arch, row, classes, unknown_counters)
    return {name: _layout(state[sources[name]], name, row) for name in shapes}


def paddle_to_torch(
    state: Mapping[str, np.ndarray], arch: str, class_num: int | None = None
) -> State:
    """Return PyTorch's state dict of network `arch` from Paddle's, in PyTorch's order.

    Numbers become float32; the counters PyTorch keeps are int64 zeros, since Paddle has no
    such counter, whatever they were. See `torch_to_paddle`.
    """
    row = find_architecture(arch)
    classes = _classes(state, row, class_num)
    _check(state, row.shapes(classes), arch, row, classes)
    return {
        name: np.zeros((), np.int64) if source is None else _layout(state[source], source, row)
        for name, source in torch_names(arch, classes).items()
    }


def _classes(state: Mapping[str, np.ndarray], row: Architecture, asked: int | None) -> int:
    """The class count to convert for: a detector's official weights come with more than one."""
    seen = class_count(state, row) if row.size else None
    return asked or seen or row.class_num


def _flip(name: str, shape: tuple[int, ...], row: Architecture) -> tuple[int, ...]:
    return shape[::-1] if name in row.linear else shape


def _layout(value: np.ndarray, name: str, row: Architecture) -> np.ndarray:
    """Transposing is its own inverse, so this serves both ways."""
    value = np.asarray(value)
    turned = value.T if name in row.linear else value
    return np.array(turned, np.float32, order="C")


def _check(
    given: Mapping[str, np.ndarray],
    expected: Shapes,
    arch: str,
    row: Architecture,
    class_num: int,
    also_unexpected: Iterable[str] = (),
) -> None:
    missing = [name for name in expected if name not in given]
    unexpected = [*(name for name in given if name not in expected), *also_unexpected]
    wrong = [
        f"{name} {_found(given[name])} for {list(shape)}"
        for name, shape in expected.items()
        if name in given and _found(given[name]) != str(list(shape))
    ]
    if not missing and not unexpected and not wrong:
        return
    reason = f"the weights do not fit {arch}"
    if unexpected or len(missing) + len(wrong) > len(row.head):
        reason += _other_owner(given, expected, arch)
    elif missing and wrong:  # a detector of a smaller size has some of the names
        reason += _owner(given, arch)
    elif wrong and not missing and not unexpected and (count := class_count(given, row)):
        reason += f" with {class_num} classes (they have {count}: pass --class-num {count})"
    raise ConversionError(reason, missing, unexpected, wrong)


def _other_owner(given: Mapping[str, np.ndarray], expected: Shapes, arch: str) -> str:
    """Say whose weights these are instead, or that they are named the other way."""
    looks = describe(given)
    if looks and looks not in {row.looks for row in architectures().values()}:
        return f", they look like {looks}"
    if {torch_name(name) for name in given} <= set(expected):
        return ", their names are already Paddle's"
    if {paddle_name(name) for name in given} - {None} <= set(expected):
        return ", their names are still PyTorch's"
    return _owner(given, arch, looks)


def _owner(given: Mapping[str, np.ndarray], arch: str, looks: str | None = None) -> str:
    """Say which row's these weights are if it is another one, or if none's what they look like."""
    try:
        owner = recognise(given)
    except ConversionError:
        return f", they look like {looks}" if looks else ""
    return f", they are those of {owner}" if owner != arch else ""


def _found(value: np.ndarray) -> str:
    """The shape as text; another kind than floating numbers shows as its dtype."""
    value = np.asarray(value)
    shape = str(list(value.shape))
    return shape if value.dtype.kind == "f" else f"{shape} {value.dtype}"


def class_count(given: Mapping[str, np.ndarray], row: Architecture) -> int | None:
    """Return the class count of weights under either side's names; None without a proper head."""
    sizes = [np.shape(given[name]) for name in row.head if name in given]
    if not sizes or len(sizes[-1]) != 1:
        return None
    count, rest = divmod(sizes[-1][0], row.per_class)
    return count if count and not rest else None


# Recognition ------------------------------------------------------------------------------------

# What a file with these names in it looks like; `*` matches any text, the first row that fits wins.
LOOKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("base.*", "extras.*", "loc.*", "conf.*"), "an SSD-HarDNet detector"),
    (("base.*", "denseBlocksUp.*", "hm.*", "wh.*"), "a CenterNet-HarDNet detector"),
    (("base.*", "denseBlocksUp.*", "finalConv.*"), "an FC-HarDNet segmentation network"),
    (("*_velocity_0",), "a Paddle optimizer's state"),
    (("*_moment1_0",), "a Paddle optimizer's state"),
    (("param_groups", "state"), "a PyTorch optimizer's state"),
    (("*layer1.0.conv1.weight", "*layer4.0.conv1.weight"), "a ResNet"),
    (("*denseblock1.denselayer1.*",), "a DenseNet"),
    (("features.*.conv.0.0.weight",), "a MobileNet"),
    (("*blocks.0.attn.qkv.weight",), "a vision transformer"),
    (("features.init_block.*", "features.stage1.*"), "a network of pytorchcv"),
)


def describe(names: Iterable[str]) -> str | None:
    """Say what the owner of these names looks like, None when it is nothing known."""
    names = [name for name in names if isinstance(name, str)]
    for patterns, words in LOOKS:
        if all(any(_matches(name, pattern) for name in names) for pattern in patterns):
            return words
    return None


def _matches(name: str, pattern: str) -> bool:
    """Whether the parts of `pattern` between its stars follow each other in `name`."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    if not name.startswith(first):
        return False
    position = len(first)
    for part in rest[:-1]:
        position = name.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return name.endswith(rest[-1]) and len(name) - len(rest[-1]) >= position


def recognise(state: Mapping[str, np.ndarray]) -> str:
    """Return the row whose names and shapes `state` has, under either side's names.

    The class count may be any. At least nine of ten tensors must fit, so that a damaged file is
    still named and the conversion can say what is wrong with it. Raises ConversionError otherwise.
    """
    rows = architectures()
    best = closest(state, rows)
    looks = describe(state)
    if _score(state, rows[best]) < 0.9 or looks != rows[best].looks:
        looks = f"they look like {looks}" if looks else f"{len(state)} tensors of something else"
        raise ConversionError(f"the weights are of none of {', '.join(rows)}: {looks}")
    return best


def closest(state: Mapping[str, np.ndarray], names: Iterable[str]) -> str:
    """Return which of the rows called `names` fits `state` best, the first of equals."""
    return max(names, key=lambda name: _score(state, find_architecture(name)))


def _score(state: Mapping[str, np.ndarray], row: Architecture) -> float:
    found = {}
    for name, value in state.items():
        known = paddle_name(name)
        is_bare = known is not None and not known.startswith(row.prefix)
        found[row.prefix + known if is_bare else known] = np.shape(value)
    shapes = {k: v for k, v in row.shapes(row.class_num).items() if k not in row.head}
    fitting = sum(found.get(name) == shape for name, shape in shapes.items())
    return fitting / max(len(shapes), len(found) - len(row.head))
