"""The networks under `paddle.Model`, as a Paddle user writes it: fit, evaluate, predict, save."""

import numpy as np
import paddle
import pytest

from ppcls.arch import create_model
from ppcls.utils.pdparams import load_paddle_state_dict


class Blobs(paddle.io.Dataset):
    """Twelve images of two classes, one bright and one dark."""

    def __init__(self):
        noise = np.random.default_rng(0).standard_normal((12, 3, 32, 32)).astype("float32")
        self.labels = np.arange(12) % 2
        self.images = 0.1 * noise + (2.0 * self.labels - 1).astype("float32")[:, None, None, None]

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.images[index], self.labels[index : index + 1].astype("int64")


@pytest.fixture(scope="module")
def fitted():
    paddle.seed(1)
    model = paddle.Model(create_model("HarDNet39_ds", class_num=2))
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, parameters=model.parameters())
    model.prepare(optimizer, paddle.nn.CrossEntropyLoss(), paddle.metric.Accuracy())
    model.fit(Blobs(), epochs=5, batch_size=6, verbose=0)
    return model


def test_evaluate_agrees_with_predict(fitted):
    data = Blobs()
    scores = fitted.evaluate(data, batch_size=5, verbose=0)
    (logits,) = fitted.predict(data, batch_size=5, stack_outputs=True, verbose=0)
    assert logits.shape == (12, 2)
    assert scores["acc"] == np.mean(logits.argmax(1) == data.labels)


def test_what_it_saves_loads_here_and_in_paddle(fitted, tmp_path):
    fitted.save(str(tmp_path / "own"))
    images = Blobs().images[:2]
    (expected,) = fitted.predict_batch([images])
    network = create_model("HarDNet39_ds", class_num=2, pretrained=str(tmp_path / "own.pdparams"))
    network.eval()
    np.testing.assert_array_equal(network(paddle.to_tensor(images)).numpy(), expected)
    state = load_paddle_state_dict(tmp_path / "own.pdparams")
    assert list(state) == list(network.state_dict())


def test_it_saves_for_inference(tmp_path):
    network = create_model("HarDNet39_ds", class_num=2)
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "image")]
    paddle.Model(network, spec).save(str(tmp_path / "inference"), training=False)
    loaded = paddle.jit.load(str(tmp_path / "inference"))
    loaded.eval()
    network.eval()
    images = paddle.to_tensor(Blobs().images[:2])
    np.testing.assert_allclose(loaded(images).numpy(), network(images).numpy(), atol=1e-5)
