"""The networks whose weights can be converted, as data.

A row is what one kind of file holds: a classifier, a whole detector of one input size, or the
trunk a detector's training starts from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from ppcls.utils.errors import ConfigError, did_you_mean
from ppcls.utils.registry import fold_name

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row. `shapes(class_num)` are its Paddle names and shapes, in order."""

    network: str  # the name it is built by
    shapes: Callable[[int], Shapes]
    class_num: int  # of the official weights; 0 where there are none
    head: tuple[str, ...] = ()  # tensors whose shape depends on the class count
    per_class: int = 1  # numbers per class in the last of them
    linear: frozenset[str] = frozenset()  # weights transposed between the two
    size: int | None = None  # side of the input the network is built for, pixels
    prefix: str = ""  # of Paddle's names, which PyTorch's lack
    looks: str | None = None  # what `mapping.describe` says of these weights


def _classifiers() -> dict[str, Architecture]:
    from ppcls.arch.backbone.hardnet_plan import VARIANTS, expected_shapes, plan_units

    rows = {}
    for name, spec in VARIANTS.items():
        head = f"base.{len(plan_units(spec))}.3"
        rows[name] = Architecture(
            network=name,
            shapes=functools.partial(expected_shapes, spec),
            class_num=1000,
            head=(f"{head}.weight", f"{head}.bias"),
            linear=frozenset({f"{head}.weight"}),
        )
    return rows


def _detectors() -> dict[str, Architecture]:
    from ppcls.arch.detection.ssd_plan import SIZES, SSD_VARIANTS, detector_shapes, trunk_shapes

    rows = {}
    for name, spec in SSD_VARIANTS.items():
        for size in SIZES:
            shapes = functools.partial(detector_shapes, spec, size)
            head = tuple(key for key in shapes(1) if key.startswith("conf."))
            rows[f"{name}@{size}"] = Architecture(
                network=name,
                shapes=shapes,
                class_num=81,
                head=head,
                per_class=shapes(1)[head[-1]][0],
                size=size,
                looks="an SSD-HarDNet detector",
            )
        # The official files are loaded into `base` itself: `0.conv.weight`.
        rows[f"{name}_trunk"] = Architecture(
            network=name,
            shapes=lambda _, spec=spec: trunk_shapes(spec),
            class_num=0,
            prefix="base.",
        )
    return rows


@functools.cache
def _rows() -> dict[str, Architecture]:
    # Imported late: the package `ppcls.arch` imports Paddle, which reading a file does not need.
    return _classifiers() | _detectors()


def architectures() -> dict[str, Architecture]:
    """Every row by its name: a classifier's is PaddleClas's, a detector's ends in "@" and its size,
    a trunk's in "_trunk"."""
    return dict(_rows())


def find_architecture(name: str) -> Architecture:
    """Return the row of any spelling of its name, or raise ConfigError with the known names."""
    return architectures()[canonical_name(name)]


def canonical_name(name: str) -> str:
    """Return a row's name for any spelling of it (`hardnet_39_ds`), or raise ConfigError."""
    rows = architectures()
    found = {fold_name(known): known for known in rows}.get(fold_name(name))
    if found is None:
        hint = did_you_mean(name, rows)
        raise ConfigError(f"arch: unknown network {name!r}{hint}; known: {', '.join(rows)}")
    return found


def candidates(name: str, size: int | None = None) -> list[str]:
    """Return the rows that `name`, of a row or of a network, may mean; with `size` those of it.

    A trunk is that of every size. Raises ConfigError when there is none.
    """
    rows = architectures()
    found = [key for key, row in rows.items() if fold_name(row.network) == fold_name(name)]
    found = found or [canonical_name(name)]
    if size is None:
        return found
    network = rows[found[0]].network
    known = sorted({row.size for row in rows.values() if row.network == network and row.size})
    fitting = [key for key in found if rows[key].size in (size, None)]
    if size not in known or not fitting:
        known = known if fitting else [rows[key].size for key in found]
        expected = " or ".join(map(str, known)) if known else "none, this network has no fixed one"
        raise ConfigError(f"size: expected {expected}, got {size}")
    return fitting


def loadable(network: str) -> list[str]:
    """Return the rows whose weights can be loaded into `network`, in whole or into its trunk."""
    from ppcls.arch.detection.ssd_plan import SSD_VARIANTS

    found = candidates(network)
    name = architectures()[found[0]].network
    return [*found, SSD_VARIANTS[name].classifier] if name in SSD_VARIANTS else found
