"""The plan against the tables of the paper's official code, written out by hand."""

import json

import pytest

from ppcls.arch.backbone.hardnet_plan import (
    VARIANTS,
    BlockUnit,
    ConvUnit,
    DepthwiseUnit,
    DropoutUnit,
    PoolUnit,
    expected_shapes,
    feature_pyramid,
    layer_links,
    layer_width,
    output_size,
    plan_block,
    plan_units,
    smallest_input,
)

LINKS = {
    1: (0,),
    2: (1, 0),
    3: (2,),
    4: (3, 2, 0),
    5: (4,),
    6: (5, 4),
    7: (6,),
    8: (7, 6, 4, 0),
    9: (8,),
    10: (9, 8),
    11: (10,),
    12: (11, 10, 8),
    13: (12,),
    14: (13, 12),
    15: (14,),
    16: (15, 14, 12, 8, 0),
}

WIDTHS = {  # (multiplier, growth): widths for 1, 2, 3, 4, 5 links
    (1.6, 16): (16, 26, 40, 66, 104),
    (1.6, 20): (20, 32, 52, 82, 132),
    (1.6, 64): (64, 102, 164, 262, 420),
    (1.6, 160): (160, 256, 410, 656, 1048),
    (1.7, 14): (14, 24, 40, 68, 116),
    (1.7, 16): (16, 28, 46, 78, 134),
    (1.7, 20): (20, 34, 58, 98, 168),
    (1.7, 24): (24, 40, 70, 118, 200),
    (1.7, 28): (28, 48, 80, 138, 234),
    (1.7, 36): (36, 62, 104, 176, 300),
    (1.7, 40): (40, 68, 116, 196, 334),
    (1.7, 48): (48, 82, 138, 236, 400),
    (1.7, 160): (160, 272, 462, 786, 1336),
    (1.7, 256): (256, 436, 740, 1258, 2138),
}

# Per unit of `base`: kind, output channels, side of the output for 224 pixels, parameters.
# C convolution, D depthwise convolution, P max pooling, B block, R dropout.
UNITS_39_DS = [
    ("C", 24, 112, 696),
    ("C", 48, 112, 1248),
    ("D", 48, 56, 528),
    ("B", 72, 56, 7722),
    ("C", 96, 56, 7104),
    ("D", 96, 28, 1056),
    ("B", 292, 28, 95950),
    ("C", 320, 28, 94080),
    ("D", 320, 14, 3520),
    ("B", 518, 14, 367978),
    ("C", 640, 14, 332800),
    ("D", 640, 7, 7040),
    ("B", 730, 7, 793938),
    ("C", 1024, 7, 749568),
]
UNITS_68_DS = [
    ("C", 32, 112, 928),
    ("C", 64, 112, 2176),
    ("D", 64, 56, 704),
    ("B", 124, 56, 21788),
    ("C", 128, 56, 16128),
    ("D", 128, 28, 1408),
    ("B", 262, 28, 93960),
    ("C", 256, 28, 67584),
    ("B", 328, 28, 180782),
    ("C", 320, 28, 105600),
    ("D", 320, 14, 3520),
    ("B", 654, 14, 558842),
    ("C", 640, 14, 419840),
    ("D", 640, 7, 7040),
    ("B", 782, 7, 872486),
    ("C", 1024, 7, 802816),
]
UNITS_68 = [
    ("C", 32, 112, 928),
    ("C", 64, 112, 18560),
    ("P", 64, 56, 0),
    ("B", 124, 56, 171712),
    ("C", 128, 56, 16128),
    ("P", 128, 28, 0),
    ("B", 262, 28, 783080),
    ("C", 256, 28, 67584),
    ("B", 328, 28, 1549068),
    ("C", 320, 28, 105600),
    ("P", 320, 14, 0),
    ("B", 654, 14, 4873868),
    ("C", 640, 14, 419840),
    ("P", 640, 7, 0),
    ("B", 782, 7, 7731164),
    ("C", 1024, 7, 802816),
]
UNITS_85 = [
    ("C", 48, 112, 1392),
    ("C", 96, 112, 41664),
    ("P", 96, 56, 0),
    ("B", 214, 56, 475964),
    ("C", 192, 56, 41472),
    ("P", 192, 28, 0),
    ("B", 392, 28, 1751292),
    ("C", 256, 28, 100864),
    ("B", 458, 28, 2540724),
    ("C", 320, 28, 147200),
    ("P", 320, 14, 0),
    ("B", 588, 14, 4143232),
    ("C", 480, 14, 283200),
    ("B", 784, 14, 7790624),
    ("C", 720, 14, 565920),
    ("P", 720, 7, 0),
    ("B", 1252, 7, 15900544),
    ("R", 1252, 7, 0),
    ("C", 1280, 7, 1605120),
]
UNITS = {
    "HarDNet39_ds": UNITS_39_DS,
    "HarDNet68_ds": UNITS_68_DS,
    "HarDNet68": UNITS_68,
    "HarDNet85": UNITS_85,
}
KINDS = {ConvUnit: "C", DepthwiseUnit: "D", PoolUnit: "P", BlockUnit: "B", DropoutUnit: "R"}

PARAMETERS = {
    "HarDNet39_ds": 3_488_228,
    "HarDNet68_ds": 4_180_602,
    "HarDNet68": 17_565_348,
    "HarDNet85": 36_670_212,
}
CONV_LAYERS = {"HarDNet39_ds": 74, "HarDNet68_ds": 131, "HarDNet68": 67, "HarDNet85": 84}

BLOCKS = {  # index in `base`: input>output of every layer
    ("HarDNet39_ds", 3): "48>16 64>26 26>16 90>40",
    ("HarDNet39_ds", 9): "320>64 384>102 102>64 486>164 164>64 228>102 102>64 650>262",
    ("HarDNet68", 6): "128>16 144>28 28>16 172>46 46>16 62>28 28>16 218>78 78>16 94>28 28>16 "
    "122>46 46>16 62>28 28>16 296>134",
    ("HarDNet68_ds", 14): "640>160 800>272 272>160 1072>462",
    ("HarDNet85", 13): "480>48 528>82 82>48 610>138 138>48 186>82 82>48 748>236 236>48 284>82 "
    "82>48 366>138 138>48 186>82 82>48 984>400",
    ("HarDNet85", 16): "720>256 976>436 436>256 1412>740",
}


def size(shape):
    product = 1
    for side in shape:
        product *= side
    return product


def trainable(shapes):
    return {n: s for n, s in shapes.items() if not n.endswith(("._mean", "._variance"))}


@pytest.mark.parametrize("number", LINKS)
def test_links(number):
    assert layer_links(number) == LINKS[number]


@pytest.mark.parametrize(("multiplier", "growth"), WIDTHS)
def test_widths(multiplier, growth):
    widths = tuple(layer_width(growth, multiplier, links) for links in range(1, 6))
    assert widths == WIDTHS[multiplier, growth]


@pytest.mark.parametrize(
    ("growth", "multiplier", "links", "width"),
    [(17, 1.0, 1, 18), (16, 1.6, 2, 26), (16, 1.6, 3, 40), (14, 1.7, 2, 24), (1, 1.0, 1, 2)],
)
def test_an_odd_width_rounds_up(growth, multiplier, links, width):
    assert layer_width(growth, multiplier, links) == width


def test_a_block_gives_its_odd_layers_and_its_last():
    block = plan_block(48, growth=16, multiplier=1.6, layers=4)
    assert [layer.links for layer in block.layers] == [LINKS[n] for n in range(1, 5)]
    assert block.outputs == (1, 3, 4)
    assert block.out_channels == 16 + 16 + 40
    assert plan_block(8, 2, 1.7, layers=16).outputs == (1, 3, 5, 7, 9, 11, 13, 15, 16)


@pytest.mark.parametrize(("name", "index"), BLOCKS)
def test_layers_of_the_blocks(name, index):
    unit = plan_units(VARIANTS[name])[index]
    layers = [f"{layer.in_channels}>{layer.out_channels}" for layer in unit.plan.layers]
    assert " ".join(layers) == BLOCKS[name, index]


@pytest.mark.parametrize("name", VARIANTS)
def test_units(name):
    spec = VARIANTS[name]
    shapes = trainable(expected_shapes(spec, class_num=1000))
    units = plan_units(spec)
    found = []
    for index, unit in enumerate(units):
        own = [shape for key, shape in shapes.items() if key.startswith(f"base.{index}.")]
        side = output_size(units[: index + 1], 224)
        found.append((KINDS[type(unit)], unit.out_channels, side, sum(map(size, own))))
    assert found == UNITS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_layers(name):
    shapes = expected_shapes(VARIANTS[name], class_num=1000)
    assert sum(map(size, trainable(shapes).values())) == PARAMETERS[name]
    assert sum(len(shape) == 4 for shape in shapes.values()) == CONV_LAYERS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_are_those_of_released_files(name, assets):
    pinned = json.loads((assets / "hardnet_state_dicts.json").read_text())[name]
    shapes = expected_shapes(VARIANTS[name], class_num=1000)
    assert list(shapes) == list(pinned)
    assert {key: list(shape) for key, shape in shapes.items()} == pinned


def test_dropout_rates():
    rates = {name: spec.dropout for name, spec in VARIANTS.items()}
    assert rates == {
        "HarDNet39_ds": 0.05,
        "HarDNet68_ds": 0.05,
        "HarDNet68": 0.1,
        "HarDNet85": 0.2,
    }
    dropouts = [u for u in plan_units(VARIANTS["HarDNet85"]) if isinstance(u, DropoutUnit)]
    assert [unit.p for unit in dropouts] == [0.1]


@pytest.mark.parametrize(
    ("name", "modules", "channels"),
    [
        ("HarDNet39_ds", [4, 7, 10, 13], [96, 320, 640, 1024]),
        ("HarDNet68_ds", [4, 9, 12, 15], [128, 320, 640, 1024]),
        ("HarDNet68", [4, 9, 12, 15], [128, 320, 640, 1024]),
        ("HarDNet85", [4, 9, 14, 18], [192, 320, 720, 1280]),
    ],
)
def test_features_are_the_last_map_of_each_stride(name, modules, channels):
    pyramid = feature_pyramid(plan_units(VARIANTS[name]))
    assert [feature.unit for feature in pyramid] == modules
    assert [feature.channels for feature in pyramid] == channels
    assert [feature.stride for feature in pyramid] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("HarDNet39_ds", 1), ("HarDNet68_ds", 1), ("HarDNet68", 29), ("HarDNet85", 29)],
)
def test_smallest_input(name, smallest):
    units = plan_units(VARIANTS[name])
    assert smallest_input(units) == smallest
    assert output_size(units, smallest) == 1
    assert output_size(units, smallest - 1) == 0
