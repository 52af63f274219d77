"""The same weights in pytorchcv's networks give the same logits (PyTorch, the extra `parity`)."""

import numpy as np
import oracle
import paddle
import pytest

from ppcls.arch import create_model

pytestmark = pytest.mark.parity

NAMES = {
    "HarDNet39_ds": "hardnet39ds",
    "HarDNet68_ds": "hardnet68ds",
    "HarDNet68": "hardnet68",
    "HarDNet85": "hardnet85",
}


def relu6_everywhere(module, torch):
    """pytorchcv has ReLU in the blocks of 68 and 85, where the official code has ReLU6."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ReLU):
            setattr(module, name, torch.nn.ReLU6())
        relu6_everywhere(child, torch)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_pytorchcv(name):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("pytorchcv.models.hardnet")
    ours = oracle.fill(create_model(name))
    ours.eval()
    theirs = getattr(models, NAMES[name])(pretrained=False)
    relu6_everywhere(theirs, torch)
    theirs.eval()

    arrays = [t.numpy() for t in ours.state_dict().values()]
    target = {k: t for k, t in theirs.state_dict().items() if not k.endswith("batches_tracked")}
    assert len(arrays) == len(target)
    for (key, tensor), array in zip(target.items(), arrays, strict=True):
        array = array.T if array.ndim == 2 else array
        assert tuple(tensor.shape) == array.shape, key
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    x = oracle.image(0, (1, 3, 224, 224))  # pytorchcv pools 7x7, not the whole map
    found = ours(paddle.to_tensor(x)).numpy()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
