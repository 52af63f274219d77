"""Accumulated gradients on two processes: what travels between them, and when. CPU, gloo.

Each process runs every variant one after the other and writes down its gradients after each step.
"""

import textwrap

import numpy as np
import pytest
import running

GROUP = 3  # steps per update
VARIANTS = ("plain", "synchronised", "buckets", "unused", "static")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Rank -> variant -> `after step N` -> the gradients then, in a row; `weights` in the end."""
    folder = tmp_path_factory.mktemp("accumulation")
    script = folder / "accumulate.py"
    script.write_text(
        textwrap.dedent(f"""\
            import contextlib, sys
            from pathlib import Path
            sys.path[:0] = [{str(running.ROOT)!r}, {str(running.ROOT / "tests" / "engine")!r}]
            from ppcls.utils import distributed, runtime
            runtime.import_paddle()
            import numpy as np
            import paddle
            from tiny_run import tiny_net, trainer
            from ppcls.engine import parallel
            from ppcls.engine.config import DistributedConfig

            def row(tensors):
                return np.concatenate([tensor.numpy().ravel() for tensor in tensors])

            def record(run, weights, found):
                step = run.precision.backward

                def backward(loss):
                    step(loss)
                    number = sum(name.startswith("after") for name in found)
                    found[f"after step {{number}}"] = row([p.grad for p in weights])

                run.precision.backward = backward

            def train(variant, sharing):
                model = tiny_net(dtype="float64", frozen=True)
                network = None
                if variant == "static":
                    spec = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]
                    network = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
                run = trainer(
                    Path(variant), model, network=network, sharing=sharing, batch_size=8,
                    epochs=1, update_freq={GROUP}, eval_during_train=False,
                )
                if variant == "synchronised":
                    run.network.no_sync = contextlib.nullcontext
                found = {{}}
                weights = [p for p in model.parameters() if not p.stop_gradient]
                record(run, weights, found)
                run.fit()
                return {{**found, "weights": row(weights)}}

            parallel.start()
            sharing = {{
                "buckets": DistributedConfig(comm_buffer_size=1, last_comm_buffer_size=0.0001),
                "unused": DistributedConfig(find_unused_parameters=True),
            }}
            for variant in {VARIANTS}:
                result = train(variant, sharing.get(variant))
                np.savez(f"{{variant}}.{{distributed.rank()}}.npz", **result)
            parallel.stop()
            """)
    )
    options = ("--nproc_per_node", 2, "--master", f"127.0.0.1:{running.free_port()}")
    process = running.start(folder, *running.launcher(*options), script)
    run = running.finish(process)
    assert run.code == 0, "".join(p.read_text() for p in folder.glob("log/workerlog.*"))
    return [
        {variant: dict(np.load(folder / f"{variant}.{rank}.npz")) for variant in VARIANTS}
        for rank in range(2)
    ]


def steps(rows):
    return [rows[f"after step {n}"] for n in range(len(rows) - 1)]


@pytest.mark.parametrize("variant", ["plain", "buckets", "unused", "static"])
def test_gradients_travel_with_the_last_step_of_an_update(ranks, variant):
    pairs = list(zip(*(steps(rank[variant]) for rank in ranks), strict=True))
    assert len(pairs) == 4  # 60 images, 16 a step: an update of three steps, and one of one
    for number, (first, second) in enumerate(pairs):
        if number in (GROUP - 1, len(pairs) - 1):
            np.testing.assert_array_equal(first, second)
        else:
            assert np.abs(first - second).max() > 1e-4


def test_without_it_they_travel_with_every_step(ranks):
    for first, second in zip(*(steps(rank["synchronised"]) for rank in ranks), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_the_updates_are_the_same(ranks, variant):
    for rank in ranks:
        np.testing.assert_allclose(
            rank[variant]["weights"], ranks[0]["plain"]["weights"], rtol=0, atol=1e-12
        )
