"""The form "openvino-int8": post-training quantisation of the form "openvino" by NNCF.

float IR --NNCF, calibration images--> int8 candidate --evaluate--> kept when the score dropped by
no more than was allowed; otherwise layers go back to float, the most sensitive first.

NNCF's own `quantize_with_accuracy_control` is not used: it ranks by its validation function on
single images, or by differences of outputs, which in a detector have no fixed shape; and of those
differences (3.4) it reverts the layer that helps least first.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppcls.deploy import sensitivity
from ppcls.deploy.compiled import (
    CompiledModel,
    filled_up,
    fixed_batch,
    has_fixed_sizes,
    name_inputs,
)
from ppcls.deploy.nncf_run import QuantizeConfig, Ranges, run_nncf
from ppcls.deploy.openvino_packages import import_openvino, openvino_core
from ppcls.deploy.package import FORMS, Manifest
from ppcls.deploy.sensitivity import Sensitivity
from ppcls.utils.errors import DataError, JobError, UserError

logger = logging.getLogger("ppcls")

FORM = "openvino-int8"
REPORTED_LAYERS = 10
_ERROR_ITEMS = 32  # calibration inputs on which the outputs' error is measured

Infer = Callable[..., list[np.ndarray]]
Evaluate = Callable[[Infer], float]


class Attempt(NamedTuple):
    """Settings that were tried, and the score that decided on them."""

    ranges: Ranges
    reverted: int  # layers left in float
    score: float


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """A network in int8, and what that cost.

    model: an `openvino.Model`; its layers' names are those of the float model.
    sensitive_layers: all that could be measured, most sensitive first; may be empty.
    sqnr_db: signal to noise of the outputs (see `ppcls.deploy.sensitivity`).
    """

    model: Any = field(repr=False)
    float_score: float
    int8_score: float
    reverted_layers: list[str]
    sensitive_layers: list[Sensitivity]
    attempts: list[Attempt]
    sqnr_db: float
    layers: int  # quantised or not
    calibration_images: int
    seconds: float = field(compare=False)

    def report(self) -> dict[str, Any]:
        """Return what a tool writes as JSON."""
        return {
            "float_score": self.float_score,
            "int8_score": self.int8_score,
            "drop": self.float_score - self.int8_score,
            "sqnr_db": self.sqnr_db,
            "layers": self.layers,
            "reverted_layers": self.reverted_layers,
            "sensitive_layers": [e._asdict() for e in self.sensitive_layers[:REPORTED_LAYERS]],
            "attempts": [attempt._asdict() for attempt in self.attempts],
            "calibration_images": self.calibration_images,
            "seconds": self.seconds,
        }


def quantize(
    model: Any,
    calibration: Iterable[np.ndarray | Sequence[np.ndarray]],
    evaluate: Evaluate,
    *,
    max_drop: float,
    config: QuantizeConfig = QuantizeConfig(),  # noqa: B008 - frozen
) -> QuantizeResult:
    """Quantise a float OpenVINO model to int8, as far as the score allows.

    model: an `openvino.Model`, or the path of an .xml, of fixed height and width; it stays as it
        is.
    calibration: inputs of the network, `image` or (`image`, `image_sizes`), each of any number of
        images; `config.subset_size` images are used.
    evaluate: given a function from inputs to the list of outputs, for any number of images, returns
        a score; higher is better.
    max_drop: how far the score may fall, in its own unit.

    The same inputs give the same model. Raises UserError for a missing package or an open height or
    width, DataError without calibration images, JobError when the drop cannot be held.
    """
    start = time.perf_counter()
    if not 0 <= max_drop < math.inf:
        raise UserError(f"max_drop: expected a number from 0, got {max_drop}")
    if isinstance(model, (str, Path)):
        model = openvino_core(FORM).read_model(model)
    if not has_fixed_sizes(model):  # OpenVINO may compute it wrongly: see `Compiled`
        shapes = ", ".join(str(port.get_partial_shape()) for port in model.inputs)
        raise UserError(f"int8: expected a model of fixed height and width, got inputs {shapes}")
    job = _Job(model, _collect(calibration, config.subset_size, model), evaluate, config)
    float_score = _checked_score(evaluate(CompiledModel(model)), "float")
    logger.info("int8: score %.5f in float; to lose at most %g", float_score, max_drop)
    lowest = float_score - max_drop
    best = job.try_ranges(lowest)
    is_enough = best.score >= lowest
    ranking = [] if is_enough and not config.ranking_images else job.rank(best)
    if not is_enough:
        best = job.revert(best.ranges, [entry.layer for entry in ranking], lowest)
    return QuantizeResult(
        model=best.model,
        float_score=float_score,
        int8_score=best.score,
        reverted_layers=list(best.reverted),
        sensitive_layers=ranking,
        attempts=job.attempts,
        sqnr_db=sensitivity.network_error(model, best.model, job.items[:_ERROR_ITEMS]),
        layers=len(sensitivity.weighted_layers(model)),
        calibration_images=sum(len(item[0]) for item in job.items),
        seconds=time.perf_counter() - start,
    )


def quantize_form(
    folder: Path,
    manifest: Manifest,
    calibration: Iterable[np.ndarray | Sequence[np.ndarray]],
    evaluate: Evaluate,
    *,
    max_drop: float,
    config: QuantizeConfig = QuantizeConfig(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Write the form "openvino-int8" of an export folder from its form "openvino".

    Returns `QuantizeResult.report()` with `bytes` and `float_bytes` of the files. Nothing is
    written when anything fails; `inference.yml` is not touched. Raises what `quantize` does.
    """
    source = folder / FORMS["openvino"][0]
    if not source.is_file():
        raise UserError(f"{source}: expected the form 'openvino' to quantise, found no such file")
    logger.info("int8: quantising %s", manifest.arch)
    result = quantize(source, calibration, evaluate, max_drop=max_drop, config=config)
    target = folder / FORMS[FORM][0]
    save(result.model, target)
    sizes = {
        key: sum((folder / name).stat().st_size for name in FORMS[form])
        for key, form in (("bytes", FORM), ("float_bytes", "openvino"))
    }
    log_result(result)
    logger.info("int8: %.1f MB, in float %.1f", sizes["bytes"] / 1e6, sizes["float_bytes"] / 1e6)
    return {**result.report(), **sizes}


def save(model: Any, target: Path) -> None:
    """Write a model as TARGET (.xml) and its .bin, or neither. Raises UserError."""
    files = (target, target.with_suffix(".bin"))
    try:
        # Left in float is what must be: compressed to float16 it would lose accuracy once more.
        import_openvino(FORM).save_model(model, target, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:
        for file in files:
            file.unlink(missing_ok=True)
        raise UserError(f"{target}: cannot be written: {error}") from error


def log_result(result: QuantizeResult) -> None:
    """Say in the log what was lost, and where."""
    scores = (result.int8_score, result.float_score, result.float_score - result.int8_score)
    logger.info("int8: score %.5f, in float %.5f, a drop of %.5f", *scores)
    kept = result.layers - len(result.reverted_layers)
    place = (kept, result.layers, result.calibration_images, result.sqnr_db)
    logger.info(
        "int8: %d of %d layers, calibrated on %d images, outputs %.1f dB over noise", *place
    )
    if result.reverted_layers:
        logger.info("int8: in float: %s", ", ".join(result.reverted_layers))
    for entry in result.sensitive_layers[:REPORTED_LAYERS]:
        shape = "x".join(map(str, entry.shape))
        place = (entry.sqnr_db, entry.place, result.layers, entry.layer, entry.kind, shape)
        logger.info("int8: %.1f dB with only layer %d of %d in int8: %s, %s %s", *place)


class _Candidate(NamedTuple):
    """A quantised model. `plain` is the same with FakeQuantize operations on float weights."""

    ranges: Ranges
    reverted: list[str]
    score: float
    model: Any
    plain: Any


@dataclass(frozen=True)
class _Job:
    """What all attempts share."""

    model: Any
    items: list[list[np.ndarray]]
    evaluate: Evaluate
    config: QuantizeConfig
    attempts: list[Attempt] = field(default_factory=list)

    @functools.cached_property
    def _always_float(self) -> list[str]:
        """Names of the operations that int8 leaves alone in every attempt."""
        return [
            *sensitivity.post_processing(self.model),
            *sensitivity.normalizations(self.model),
        ]

    def try_ranges(self, lowest: float) -> _Candidate:
        """Quantise all layers, until a score is `lowest` or more; return the best candidate."""
        best: _Candidate | None = None
        for ranges in self.config.ranges:
            found = self.attempt(ranges, [])
            if best is None or found.score > best.score:
                best = found
            if best.score >= lowest:
                break
        assert best is not None, "no ranges"
        return best

    def revert(self, ranges: Ranges, names: list[str], lowest: float) -> _Candidate:
        """Put as few layers back to float as the score needs, the first of `names`.

        The number is doubled until it is enough, then halved in between.
        """
        most = math.floor(self.config.max_reverted * len(names))
        too_few, enough = 0, None
        for count in _doubling(most):
            found = self.attempt(ranges, names[:count])
            if found.score >= lowest:
                enough = found
                break
            too_few = count
        if enough is None:
            top = max(self.attempts, key=lambda attempt: attempt.score)
            raise JobError(
                f"int8: expected a score of {lowest:.5f} or more, found {top.score:.5f} at best, "
                f"with {top.reverted} of {len(names)} layers in float"
            )
        while len(enough.reverted) - too_few > 1:
            count = (len(enough.reverted) + too_few) // 2
            found = self.attempt(ranges, names[:count])
            if found.score >= lowest:
                enough = found
            else:
                too_few = count
        return enough

    def attempt(self, ranges: Ranges, reverted: list[str]) -> _Candidate:
        """Quantise all layers but `reverted`, and evaluate."""
        ignored = [*self._always_float, *reverted]
        inputs = [name_inputs(item) for item in self.items]
        plain = run_nncf(self.model, inputs, ignored, ranges, self.config)
        if not sensitivity.quantized_layers(plain):
            raise JobError("int8: expected layers to quantise in the network, found none")
        model = with_int8_weights(plain)
        score = _checked_score(self.evaluate(CompiledModel(model)), "int8")
        self.attempts.append(Attempt(ranges, len(reverted), score))
        place = (score, ranges, len(reverted))
        logger.info("int8: score %.5f (ranges: %s, layers in float: %d)", *place)
        return _Candidate(ranges, reverted, score, model, plain)

    def rank(self, candidate: _Candidate) -> list[Sensitivity]:
        """Rank layers on calibration inputs of about `ranking_images` images, one at least."""
        per_item = len(self.items[0][0])
        count = max(1, -(-self.config.ranking_images // per_item))
        return sensitivity.rank_layers(self.model, candidate.plain, self.items[:count])


def with_int8_weights(model: Any) -> Any:
    """Return a copy whose quantised weights are stored in 8 bits, as NNCF does it at its end."""
    import_openvino(FORM)
    from openvino._offline_transformations import compress_quantize_weights_transformation

    copy = model.clone()
    compress_quantize_weights_transformation(copy)
    return copy


def _doubling(most: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on, and `most` last."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most > 0:
        yield most


def _collect(
    calibration: Iterable[np.ndarray | Sequence[np.ndarray]], count: int, model: Any
) -> list[list[np.ndarray]]:
    """Return inputs of `count` images, in the batches the model takes, else one by one."""
    images: list[list[np.ndarray]] = []
    for item in calibration:
        arrays = [item] if isinstance(item, np.ndarray) else list(item)
        images += ([array[i : i + 1] for array in arrays] for i in range(len(arrays[0])))
        if len(images) >= count:
            break
    if not images:
        raise DataError("int8: expected at least one image to calibrate with, found none")
    batch = fixed_batch(model) or 1
    groups = [images[:count][i : i + batch] for i in range(0, min(count, len(images)), batch)]
    joined = ([np.concatenate(column) for column in zip(*group, strict=True)] for group in groups)
    return [[filled_up(array, batch) for array in arrays] for arrays in joined]


def _checked_score(score: float, what: str) -> float:
    if not math.isfinite(score):
        raise JobError(f"int8: expected the evaluation in {what} to give a number, got {score}")
    return float(score)
