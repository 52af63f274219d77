"""One run of NNCF, with the settings that suit HarDNet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ppcls.deploy.openvino_packages import import_nncf
from ppcls.utils import schema

Ranges = Literal["minmax", "nncf"]


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How a network is quantised."""

    subset_size: int = 300  # calibration images used
    # Of activations: "performance" is symmetric, "mixed" has zero points too. What ReLU6 gives is
    # unsigned in both.
    preset: Literal["performance", "mixed"] = "performance"
    # Which range of an activation is kept: that of all images, or NNCF's default, an average.
    # The next is tried when one is not accurate enough. In a HarDNet block most outputs share one
    # scale, as they meet in concatenations, and clipping there costs more than it gives.
    ranges: tuple[Ranges, ...] = ("minmax", "nncf")
    # Weights in 7 bits. With 8, sums of two products do not fit the 16 bits that processors
    # without VNNI (before 2019, or AMD before Zen 4) add them in: they saturate, silently.
    half_range_weights: bool = True
    ranking_images: int = 8  # for the sensitivity of layers; 0: no ranking unless it is needed
    max_reverted: float = 0.5  # share of the layers that may go back to float

    def __post_init__(self) -> None:
        schema.at_least(1, subset_size=self.subset_size)
        schema.at_least(0, ranking_images=self.ranking_images)
        if not self.ranges:
            raise ValueError("ranges: expected at least one, got none")
        if not 0 <= self.max_reverted <= 1:
            raise ValueError(f"max_reverted: expected 0 to 1, got {self.max_reverted}")


def run_nncf(
    model: Any,
    inputs: Sequence[Any],
    ignored: Sequence[str],
    ranges: Ranges,
    config: QuantizeConfig,
) -> Any:
    """Return `model` with FakeQuantize operations, those of the weights too, which stay float.

    inputs: of the model, as OpenVINO takes them. ignored: names of operations to leave alone.
    """
    nncf = import_nncf("openvino-int8")
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import (
        RangeEstimatorParameters,
        RangeEstimatorParametersSet,
    )

    sets = {"minmax": RangeEstimatorParametersSet.MINMAX, "nncf": RangeEstimatorParameters()}
    fix = OverflowFix.ENABLE if config.half_range_weights else OverflowFix.DISABLE
    parameters = AdvancedQuantizationParameters(
        overflow_fix=fix,
        activations_range_estimator_params=sets[ranges],
        backend_params={"compress_weights": False},  # later: the ranking of layers needs floats
    )
    preset = {
        "mixed": nncf.QuantizationPreset.MIXED,
        "performance": nncf.QuantizationPreset.PERFORMANCE,
    }[config.preset]
    scope = nncf.IgnoredScope(names=list(ignored), validate=False) if ignored else None
    with _quiet_progress():
        return nncf.quantize(
            model,
            nncf.Dataset(list(inputs)),
            preset=preset,
            subset_size=len(inputs),
            ignored_scope=scope,
            advanced_parameters=parameters,
        )


@contextlib.contextmanager
def _quiet_progress() -> Iterator[None]:
    """Draw none of NNCF's progress bars: the log has no place for them."""
    import rich  # what NNCF draws with

    console = rich.get_console()
    was_quiet, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = was_quiet
