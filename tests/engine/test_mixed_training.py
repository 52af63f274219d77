"""Training on mixed, augmented images: cut up anyhow, and stopped and started again."""

import numpy as np
import pytest
from tiny_run import OPS, TinyImages, arrays, fit_and_die, records, tiny_net, trainer

from ppcls.data.batch_ops import build_batch_op
from ppcls.data.loader import Loader, LoaderConfig
from ppcls.engine.checkpoint import newest_checkpoint
from ppcls.loss import build_loss

MIXING = [{"OpSampler": {"MixupOperator": {"prob": 0.5}, "CutmixOperator": {"prob": 0.4}}}]
AUGMENT = [
    {"TimmAutoAugment": {"config_str": "rand-m9-mstd0.5-inc1"}},
    {"RandomErasing": {"EPSILON": 0.5, "mode": "pixel"}},
    *OPS,
]


def mixing(folder, model, *, loss="CELoss", dataset=None, **options):
    run = trainer(
        folder,
        model,
        dataset=dataset or TinyImages(ops=AUGMENT),
        eval_during_train=False,
        **options,
    )
    op = build_batch_op(MIXING, "D")
    run.loader = Loader(run.loader.dataset, run.loader.sampler, LoaderConfig(num_workers=0), op)
    run.task.loss = build_loss([{loss: {}}], "Loss.Train")
    run.task.names = [*run.task.metric.names, *run.task.loss.names, "loss"]
    return run


@pytest.mark.parametrize("step", [1, 2, 5, 7])
def test_killed_inside_an_epoch_and_started_again(tmp_path, step):
    options = {"save_interval_steps": 1, "update_freq": 2}
    whole = tiny_net(dropout=0.4)
    mixing(tmp_path / "whole", whole, **options).fit()

    folder = tmp_path / "parts"
    first = mixing(folder, tiny_net(dropout=0.4), **options)
    fit_and_die(first, step)
    second = tiny_net(seed=77, dropout=0.4)
    run = mixing(folder, second, resume=newest_checkpoint(folder), **options)
    assert run.progress.global_step == step
    run.fit()
    for name, array in arrays(whole).items():
        np.testing.assert_array_equal(arrays(second)[name], array, name)


@pytest.mark.parametrize("count", [64, 72, 50])
@pytest.mark.parametrize("loss", ["CELoss", "BCELoss"])
def test_accumulation_is_one_large_batch(tmp_path, count, loss):
    """A sample's partner and share do not depend on the batch it is in."""
    results = []
    for batch_size, update_freq in ((32, 1), (16, 2), (8, 4)):
        model = tiny_net(dtype="float64", frozen=True)
        run = mixing(
            tmp_path / f"{loss}{update_freq}",
            model,
            loss=loss,
            dataset=TinyImages(count, ops=AUGMENT),
            batch_size=batch_size,
            update_freq=update_freq,
        )
        run.fit()
        results.append(arrays(model))
    before = arrays(tiny_net(dtype="float64", frozen=True))
    assert np.abs(results[0]["conv1.weight"] - before["conv1.weight"]).max() > 1e-4
    for result in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_allclose(result[name], array, rtol=0, atol=1e-10, err_msg=name)


def test_records_hold_losses_and_accuracy_of_the_larger_share(tmp_path):
    mixing(tmp_path, tiny_net()).fit()
    for record in records(tmp_path, "train"):
        assert np.isfinite(record["CELoss"]) and 0 <= record["top1"] <= record["top2"] <= 1
