"""What `analyze` counts, against numbers worked out by hand and the paper's formulas."""

import itertools

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import _C_ops, nn

from ppcls.analysis import analyze
from ppcls.arch import create_model
from ppcls.utils.errors import UserError


def network(forward, **parts):
    """A network with these sublayers that computes `forward(self, x)`."""

    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x):
            return forward(self, x)

    return Net()


# Of 1x3x224x224: params, MACs conv and linear, CIO, MoC min, median, max, layers, with MoC < 100.
OURS = {
    "HarDNet39_ds": (3488228, 428447474, 1024000, 9818424, 1.80, 10.95, 426.2, 74, 66),
    "HarDNet68_ds": (4180602, 774257526, 1024000, 17324440, 1.80, 8.84, 443.4, 131, 120),
    "HarDNet68": (17565348, 4245090304, 1024000, 11468940, 19.64, 226.67, 2905.7, 67, 9),
    "HarDNet85": (36670212, 9072801584, 1280000, 17469284, 21.60, 289.62, 4369.9, 84, 1),
}


@pytest.mark.parametrize("name", OURS)
def test_our_networks(name):
    cost = analyze(create_model(name), (1, 3, 224, 224), name)
    found = cost.to_dict()
    exact = ("params", "macs_conv", "macs_linear", "cio")
    params, conv, linear, cio, low, median, high, layers, below = OURS[name]
    assert tuple(found[key] for key in exact) == (params, conv, linear, cio)
    assert round(found["moc_min"], 2) == low
    assert round(found["moc_median"], 2) == median
    assert round(found["moc_max"], 1) == high
    assert (found["conv_layers"], found["moc_below_100"]) == (layers, below)
    assert not cost.uncounted and cost.name == name


@pytest.mark.slow
def test_a_detector_at_its_size():
    cost = analyze(create_model("SSD_HarDNet68", size=300, class_num=21), (1, 3, 300, 300))
    assert cost.params == 17_260_864
    assert round(cost.macs("conv") / 1e9, 2) == 9.70
    assert not cost.uncounted


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "cio", "kind"),
    [
        (nn.Conv2D(4, 6, 3, stride=2, padding=1), (4, 9, 7), 6 * 5 * 4 * 4 * 9, 252 + 120, "conv"),
        (nn.Conv2D(4, 8, 3, groups=2, dilation=2), (4, 8, 8), 8 * 16 * 2 * 9, 256 + 128, "conv"),
        (nn.Conv2D(4, 4, 3, groups=4), (4, 5, 5), 4 * 9 * 9, 100 + 36, "conv"),
        (nn.Conv2D(4, 6, 1, data_format="NHWC"), (5, 5, 4), 25 * 4 * 6, 100 + 150, "conv"),
        (nn.Conv2D(4, 6, 3, padding=1, padding_mode="reflect"), (4, 5, 5), 5400, 250, "conv"),
        (nn.Conv1D(4, 6, 3), (4, 10), 8 * 6 * 4 * 3, 40 + 48, "conv"),
        (nn.Conv3D(2, 3, 2), (2, 4, 4, 4), 27 * 3 * 2 * 8, 128 + 81, "conv"),
        (nn.Conv2DTranspose(4, 6, 2, stride=2), (4, 5, 5), 25 * 4 * 6 * 4, 100 + 600, "conv"),
        (nn.Linear(6, 5), (7, 6), 7 * 6 * 5, 42 + 35, "linear"),
        (nn.Linear(6, 5, bias_attr=False), (6,), 30, 6 + 5, "linear"),
    ],
)
def test_one_layer(layer, shape, macs, cio, kind):
    cost = analyze(nn.Sequential(layer), (1, *shape))
    (row,) = cost.layers
    assert (row.macs, row.cio, row.kind, row.is_layer) == (macs, cio, kind, True)
    assert row.name == "0" and row.op == type(layer).__name__
    assert row.input_shape == (1, *shape)
    assert row.weights == cost.params == sum(p.size for p in layer.parameters())
    assert row.traffic == 4 * (cio + row.weights)
    assert row.is_depthwise == (kind == "conv" and layer._groups == 4)
    assert cost.macs(kind) == macs and not cost.uncounted


def test_a_layer_called_twice_counts_twice():
    shared = network(lambda self, x: self.conv(self.conv(x)), conv=nn.Conv2D(3, 3, 1))
    cost = analyze(shared, (1, 3, 4, 4))
    assert [(row.name, row.call) for row in cost.layers] == [("conv", 1), ("conv", 2)]
    assert cost.macs("conv") == 2 * 144 and cost.params == 12


def test_products_called_as_functions_are_counted():
    weight = paddle.create_parameter([6, 5], "float32")

    def forward(self, x):
        x = F.conv2d(x, paddle.ones([6, 3, 3, 3]), stride=2)  # [1, 6, 3, 3]
        x = F.conv2d(x, paddle.ones([6, 1, 1, 1]), groups=6)
        x = F.conv2d_transpose(x, paddle.ones([6, 2, 2, 2]))  # [1, 2, 4, 4]
        x = x.reshape([1, 2, 16])
        x = paddle.matmul(x, paddle.ones([7, 16]), transpose_y=True)  # [1, 2, 7]
        x = paddle.bmm(x, paddle.ones([1, 7, 3]))  # [1, 2, 3]
        x = x.matmul(paddle.ones([3, 4])) @ paddle.ones([4, 6])
        return F.linear(x, self.weight)

    net = network(forward, weight=weight)
    cost = analyze(net, (1, 3, 7, 7))
    by_op = [(row.kind, row.op, row.macs, row.groups) for row in cost.layers]
    assert by_op[:3] == [
        ("conv", "conv2d", 9 * 6 * 3 * 9, 1),
        ("conv", cost.layers[1].op, 9 * 6, 6),  # conv2d or depthwise_conv2d
        ("conv", "conv2d_transpose", 9 * 6 * 2 * 4, 1),
    ]
    assert [row[2] for row in by_op[3:]] == [2 * 7 * 16, 2 * 3 * 7, 2 * 4 * 3, 2 * 6 * 4, 2 * 6 * 5]
    assert [row[0] for row in by_op[3:]] == ["matmul"] * 4 + ["linear"]
    assert {row.name for row in cost.layers} == {"Net"} and not any(r.is_layer for r in cost.layers)
    assert cost.layers[0].stride == (2, 2) and cost.layers[0].kernel == (3, 3)
    assert cost.layers[3].cio == 2 * 16 + 7 * 16 + 2 * 7
    assert cost.cio == sum(row.cio for row in cost.layers[:3])
    assert not cost.uncounted


def test_a_layer_that_computes_otherwise_is_counted_by_what_it_calls():
    class Twice(nn.Conv2D):
        def forward(self, x):
            return super().forward(x) + F.conv2d(x, 2 * self.weight)

    changed = nn.Conv2D(3, 3, 1)
    changed.forward = lambda x: F.conv2d(x, changed.weight) * 2
    by_keyword = network(lambda self, x: self.conv(x=x), conv=nn.Conv2D(3, 3, 1))
    cost = analyze(nn.Sequential(Twice(3, 3, 1), changed, by_keyword), (1, 3, 4, 4))
    names = [(row.name, row.call, row.macs) for row in cost.layers]
    assert names == [("0", 1, 144), ("0", 2, 144), ("1", 1, 144), ("2.conv", 1, 144)]
    assert not cost.uncounted


def test_what_cannot_be_counted_is_reported():
    kernel = _C_ops.matmul  # fetched before: no wrapper sees it

    def forward(self, x):
        kernel(x, x, False, True)
        paddle.einsum("ij,kj->ik", x, x)
        return self.linear(paddle.einsum("ij,kj->ik", x, x) * x)

    cost = analyze(network(forward, linear=nn.Linear(4, 2)), (1, 4))
    assert [row.name for row in cost.layers] == ["linear"]
    assert cost.uncounted == (
        "2 calls of einsum inside Net: not counted",
        "1 call of matmul inside Net: not counted",
    )


def snapshot(model):
    hooks = [(len(s._forward_pre_hooks), len(s._forward_post_hooks)) for s in model.sublayers()]
    modes = [part.training for part in [model, *model.sublayers()]]
    return (
        hooks,
        modes,
        (_C_ops.conv2d, paddle.matmul, paddle.Tensor.__matmul__, paddle.Tensor.matmul),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails):
    model = create_model("HarDNet39_ds", class_num=3)
    model.base[3].eval()  # frozen, in a network that trains
    before = snapshot(model)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    paddle.seed(5)
    expected = paddle.rand([4]).numpy()
    paddle.seed(5)
    if fails:
        with pytest.raises(UserError, match="HarDNet: expected an input it can run on, got .1, 4,"):
            analyze(model, (1, 4, 32, 32))
    else:
        analyze(model, (1, 3, 32, 32))
    assert snapshot(model) == before
    np.testing.assert_array_equal(paddle.rand([4]).numpy(), expected)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[key])
    assert paddle.is_grad_enabled()


def test_after_a_failure_inside_a_layer_the_next_network_is_counted():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 2)))
    with pytest.raises(UserError, match=r"Sequential: .* got \[1, 4\]: .InvalidArgument"):
        analyze(net, (1, 4))
    cost = analyze(nn.Sequential(nn.Linear(4, 4)), (1, 4))
    assert cost.macs("linear") == 16 and not cost.uncounted


def test_parameters_are_the_trainable_ones_each_once():
    shared = nn.Linear(4, 4)
    frozen = nn.Linear(4, 4)
    for parameter in frozen.parameters():
        parameter.stop_gradient = True
    net = nn.Sequential(shared, nn.BatchNorm1D(4), shared, frozen)
    assert analyze(net, (1, 4)).params == 20 + 8


def test_peak_memory_counts_tensors_alive_together():
    def forward(self, x):  # elements: x 48, a 96, b 16
        a = self.wide(x)
        b = self.narrow(a)
        view = a.reshape([1, -1])
        return view.sum() + b.sum()

    wide, narrow = nn.Conv2D(3, 6, 1, bias_attr=False), nn.Conv2D(6, 1, 1, bias_attr=False)
    cost = analyze(network(forward, wide=wide, narrow=narrow), (1, 3, 4, 4))
    assert 4 * (48 + 96 + 16) <= cost.peak_bytes <= 4 * (48 + 96 + 16 + 4)
    assert cost.activations == 96 + 16 and cost.activation_bytes == 4 * 112


def test_other_dtypes():
    net = nn.Sequential(nn.Conv2D(3, 6, 1)).to(dtype="float64")
    cost = analyze(net, (1, 3, 4, 4))
    assert cost.layers[0].itemsize == 8


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 8, 8), (1,), (1, 3, 0, 8)])
def test_a_batch_of_one(shape):
    with pytest.raises(UserError, match=r"input_shape: expected a batch of 1, as .* got \("):
        analyze(nn.Conv2D(3, 3, 1), shape)


def test_rows_are_in_the_order_of_execution():
    cost = analyze(create_model("HarDNet39_ds", class_num=2), (1, 3, 32, 32))
    names = [row.name for row in cost.layers]
    assert names[:3] == ["base.0.conv", "base.1.conv", "base.2.dwconv"]
    assert names[-1] == "base.14.3"
    pairs = itertools.pairwise([int(name.split(".")[1]) for name in names])
    assert all(one <= two for one, two in pairs)
