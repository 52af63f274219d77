"""Top-k accuracy, counted on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ppcls.metric.group import METRICS

if TYPE_CHECKING:
    from paddle import Tensor


@METRICS.register()
class TopkAcc:
    """How often the right class is among the k highest logits, as `top1`, `top5`...

    Equal logits count the lower class number first, on every device and version. A logit that is
    not a number is never right.

    topk: one k or several. class_num: the model's classes, when known; no k may exceed it.
    Raises ValueError for a k below 1, above class_num or given twice.
    """

    def __init__(self, topk: int | tuple[int, ...] = (1, 5), class_num: int | None = None) -> None:
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1 or len(set(self.topk)) < len(self.topk):
            raise ValueError(f"topk: expected different integers >= 1, got {list(self.topk)}")
        if class_num is not None and max(self.topk) > class_num:
            raise ValueError(
                f"topk: expected every k <= {class_num} (Arch.class_num), got {max(self.topk)}"
            )
        self.names = [f"top{k}" for k in self.topk]

    def sums(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Return per name the number of correct samples: int64 scalars, not synchronised.

        logits: [N, C] floating. label: [N] or [N, 1] integer class numbers, or [N, C] floating
        probabilities (from Mixup and the like), of which the largest counts.
        """
        import paddle  # not above: `ppcls.metric.results` serves processes without Paddle

        with paddle.no_grad():
            rank = _rank(logits, label)
        return {f"top{k}": (rank < k).astype("int64").sum() for k in self.topk}


@METRICS.register()
class DistillationTopkAcc(TopkAcc):
    """TopkAcc as PaddleClas's recipes of distillations write it.

    model_key: the student's name in `Arch.models`; the teacher is not measured. feature_key: which
    output counts; there is one.
    """

    def __init__(
        self,
        model_key: str,
        topk: int | tuple[int, ...] = (1, 5),
        feature_key: Literal["logits"] | None = None,
        class_num: int | None = None,
    ) -> None:
        super().__init__(topk, class_num)
        self.model_key = model_key

    def check_models(self, student: str, teacher: str) -> None:
        """Raise ValueError unless the model is the student."""
        if self.model_key != student:
            raise ValueError(
                f"model_key: expected {student!r}, the model that learns, got {self.model_key!r}"
            )


def _rank(logits: Tensor, label: Tensor) -> Tensor:
    """Return how many classes come before the right one: [N] int64, C when its logit is NaN."""
    import paddle

    logits = logits.astype("float32")  # exact from float16 and bfloat16, so that ties stay ties
    classes = logits.shape[-1]
    label = label.argmax(axis=-1) if label.is_floating_point() else label.astype("int64")
    label = label.reshape([-1, 1])
    right = paddle.take_along_axis(logits, label, axis=1)
    before = (logits > right) | ((logits == right) & (paddle.arange(classes) < label))
    rank = before.astype("int64").sum(axis=1)
    return paddle.where(right.isnan().squeeze(1), paddle.full_like(rank, classes), rank)
