"""AutoAugment and its descendants against the numbers of their papers and reference code.

Sources, by name in the tests: AutoAugment (arXiv 1805.09501, tables 6 and 9), PaddleClas's
`ops/autoaugment.py`, `ops/randaugment.py` and `ops/timm_autoaugment.py`, timm's
`data/auto_augment.py`, torchvision's `transforms/autoaugment.py` (TrivialAugmentWide).
"""

import collections
import hashlib
import io
import math

import numpy as np
import pytest
from PIL import Image

from ppcls.data.transforms import TRANSFORMS, build_transforms
from ppcls.data.transforms.image_ops import GREY, Step, apply_step
from ppcls.data.transforms.policies import IMAGENET, IMAGENET_V0
from ppcls.data.transforms.timm_levels import parse_policy
from ppcls.utils.errors import ConfigError

SIZE = (331, 200)  # width, height
BICUBIC, BILINEAR, NEAREST = (Image.Resampling[name] for name in ("BICUBIC", "BILINEAR", "NEAREST"))
FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")


def build(name, **params):
    return build_transforms([{name: params or None}], "ops").transforms[0]


def draws(policy, count=3000, size=SIZE):
    """Steps of many images: a list per image."""
    rng = np.random.default_rng(1)
    return [policy.draw(rng, size) for _ in range(count)]


def amounts(images):
    """What was drawn: operation -> sorted distinct amounts."""
    found = collections.defaultdict(set)
    for steps in images:
        for step in steps:
            found[step.name].add(round(float(step.amount), 9))
    return {name: sorted(values) for name, values in found.items()}


def frequencies(images):
    count = collections.Counter(step.name for steps in images for step in steps)
    return {name: number / len(images) for name, number in count.items()}


def signed(*values):
    return sorted({round(v, 9) for value in values for v in (value, -value)})


def around_one(*values):
    return sorted({round(1 + v, 9) for value in values for v in (value, -value)})


def close(frequency, expected, count=3000):
    """Within five standard deviations of a binomial frequency."""
    return abs(frequency - expected) < 5 * math.sqrt(expected * (1 - expected) / count) + 1e-9


# Operations


def test_operations_do_what_their_amount_says():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)

    def after(name, amount=0.0):
        return np.asarray(apply_step(image, Step(name, amount), GREY)).astype(int)

    wide = pixels.astype(int)
    assert np.array_equal(after("Identity"), wide)
    assert np.array_equal(after("Invert"), 255 - wide)
    assert np.array_equal(after("Posterize", 4), wide & 0xF0)
    assert np.array_equal(after("Posterize", 8), wide)
    assert not after("Posterize", 0).any()
    assert np.array_equal(after("Solarize", 100), np.where(wide < 100, wide, 255 - wide))
    assert np.array_equal(after("Solarize", 256), wide)
    added = np.where(wide < 128, np.minimum(wide + 110, 255), wide)
    assert np.array_equal(after("SolarizeAdd", 110), added)
    assert np.abs(after("Brightness", 0.5) - wide * 0.5).max() <= 1
    for name in FACTORS:
        assert np.array_equal(after(name, 1.0), wide)
    assert len(np.unique(after("Contrast", 0.0))) == 1
    grey = after("Color", 0.0)
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 1], grey[..., 2])
    moved = after("TranslateX", 3)
    assert np.array_equal(moved[:, :5], wide[:, 3:]) and (moved[:, 5:] == 128).all()
    moved = after("TranslateY", -2)
    assert np.array_equal(moved[2:], wide[:4]) and (moved[:2] == 128).all()
    assert np.array_equal(after("ShearX", 1.0)[2, :5], wide[2, 3:])  # row y + 1/2 moves y + 1/2
    assert np.array_equal(after("Rotate", 180), wide[::-1, ::-1])
    assert after("AutoContrast").min() == 0 and after("AutoContrast").max() == 255


# AutoAugment


def test_auto_augment_draws_the_papers_policy():
    images = draws(build("AutoAugment"), 12000)
    found = amounts(images)
    # PaddleClas: np.linspace(0, 30, 10) for rotations and so on, at the levels of table 9.
    assert found["Rotate"] == signed(10, 30 * 8 / 9, 30)
    assert found["Posterize"] == [4, 5, 6]  # np.round(np.linspace(8, 4, 10)) at 8, 7, 6 and 5
    levels = (3, 4, 5, 7, 8)
    assert found["Solarize"] == sorted(round(256 * (1 - n / 9), 9) for n in levels)
    assert found["Color"] == around_one(0, 0.2, 0.4, 0.8)
    assert found["Contrast"] == around_one(0.8)
    assert found["Sharpness"] == around_one(0.7)
    assert found["ShearX"] == signed(0.3 * 5 / 9)
    assert {s.resample for steps in images for s in steps if s.name == "ShearX"} == {BICUBIC}
    expected = collections.Counter()
    for pair in IMAGENET:
        for choice in pair:
            expected[choice.name] += choice.prob / 25
    found = frequencies(images)
    assert found.keys() == expected.keys()
    for name, expectation in expected.items():
        assert abs(found[name] - expectation) < 0.03, name


@pytest.mark.parametrize(
    ("policy", "digest"), [(IMAGENET, "030c4c48bb0113b9"), (IMAGENET_V0, "7712ea1da7fe5095")]
)
def test_policies_are_those_published(policy, digest):
    """The digests are of the tables in torchvision (IMAGENET) and in timm (v0), typed anew."""
    assert len(policy) == 25
    text = repr([tuple(choice) for pair in policy for choice in pair])
    assert hashlib.sha256(text.encode()).hexdigest().startswith(digest)


# RandAugment


def test_rand_augment_has_paddleclas_amounts():
    images = draws(build("RandAugment", num_layers=3, magnitude=5))
    assert {len(steps) for steps in images} == {3}
    assert amounts(images) == {
        "ShearX": signed(0.15),
        "ShearY": signed(0.15),
        "TranslateX": signed(150 / 331 * 0.5 * 331),
        "TranslateY": signed(150 / 331 * 0.5 * 200),
        "Rotate": signed(15),
        "Posterize": [2],
        "Solarize": [128],
        **{name: around_one(0.45) for name in FACTORS},
        **{name: [0] for name in ("AutoContrast", "Equalize", "Invert")},
    }
    flat = [[step] for steps in images for step in steps]
    assert all(close(share, 1 / 14, len(flat)) for share in frequencies(flat).values())
    assert all(len(steps) == 2 for steps in draws(build("RandAugment"), 10))


# TrivialAugment


def test_trivial_augment_is_torchvisions_wide_space():
    images = draws(build("TrivialAugment"), 20000)
    assert {len(steps) for steps in images} == {1}
    grid = np.linspace(0, 1, 31)
    found = amounts(images)
    for name in ("ShearX", "ShearY"):
        assert found[name] == pytest.approx(signed(*(0.99 * grid)))
    for name in ("TranslateX", "TranslateY"):
        assert found[name] == signed(*(int(32 * share) for share in grid))
    assert found["Rotate"] == pytest.approx(signed(*(135 * grid)))
    for name in FACTORS:
        assert found[name] == pytest.approx(around_one(*(0.99 * grid)))
    assert found["Posterize"] == [2, 3, 4, 5, 6, 7, 8]
    assert found["Solarize"] == pytest.approx(sorted(255 * grid))
    shares = frequencies(images)
    assert len(shares) == 14 and all(close(s, 1 / 14, 20000) for s in shares.values())


# TimmAutoAugment


def timm(config_str, **params):
    return build("TimmAutoAugment", config_str=config_str, **params).policy


def test_timm_rand_amounts_at_magnitude_9():
    """timm's level functions at 9 of 10, without noise."""
    plain = amounts(draws(timm("rand-m9-n4-p1.0")))
    assert plain == {
        "Rotate": signed(27),
        "ShearX": signed(0.27),
        "ShearY": signed(0.27),
        "TranslateX": signed(0.9 * 0.45 * 331),
        "TranslateY": signed(0.9 * 0.45 * 200),
        "Posterize": [3],  # int(3.6)
        "Solarize": [230],  # int(230.4)
        "SolarizeAdd": [99],
        **{name: [1.72] for name in FACTORS},  # 0.9 * 1.8 + 0.1
        **{name: [0] for name in ("AutoContrast", "Equalize", "Invert")},
    }
    growing = amounts(draws(timm("rand-m9-n4-p1.0-inc1")))
    assert growing["Posterize"] == [1] and growing["Solarize"] == [26]
    assert growing["Color"] == around_one(0.81)
    assert {**plain, **growing} == {**growing, **{k: growing[k] for k in plain}}
    assert amounts(draws(timm("rand-m9-n4-p1.0-inc0"))) == plain


def test_timm_rand_applies_half_of_two_operations():
    images = draws(timm("rand-m9-mstd0.5-inc1"))
    lengths = collections.Counter(len(steps) for steps in images)
    for length, expected in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert close(lengths[length] / len(images), expected)
    assert all(close(share, 1 / 15) for share in frequencies(images).values())


def test_timm_magnitude_noise():
    """`mstd`: a normal distribution clipped to 0..10, or to `mmax`; above 100 a uniform one."""

    def rotations(text):
        images = draws(timm(text), 5000)
        return np.array(
            [abs(s.amount) / 3 for steps in images for s in steps if s.name == "Rotate"]
        )

    noisy = rotations("rand-m5-mstd0.5")
    assert noisy.mean() == pytest.approx(5, abs=0.08) and noisy.std() == pytest.approx(
        0.5, abs=0.05
    )
    assert rotations("rand-m9-mstd3").max() == pytest.approx(10)
    assert rotations("rand-m9-mstd3-mmax12").max() == pytest.approx(12)
    uniform = rotations("rand-m8-mstd101")
    assert 0 <= uniform.min() < 0.3 and 7.7 < uniform.max() <= 8
    assert uniform.mean() == pytest.approx(4, abs=0.5)


def test_timm_weights_prefer_geometry_and_never_repeat():
    images = draws(timm("rand-n3-w0-p1.0"))
    assert all(len({step.name for step in steps}) == 3 for steps in images)
    shares = frequencies(images)
    assert "Posterize" not in shares and "Invert" not in shares
    assert shares["Rotate"] > shares["ShearX"] > shares["TranslateX"] > shares["Color"]
    firsts = frequencies([steps[:1] for steps in images])
    assert firsts["Rotate"] == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("text", "posterize", "colour"),
    [
        ("original", [6, 7], [0.1, 0.46, 0.82, 1.54]),  # 4 + int(0.4 n), n = 5..8
        ("originalr", [1, 2], [0.1, 0.46, 0.82, 1.54]),  # 4 - int(0.4 n)
        ("v0", [0, 2], [0.1, 0.28, 0.82, 1.18, 1.36, 1.72]),  # int(0.4 n), n = 2 and 6
        ("v0r", [2, 4], [0.1, 0.28, 0.82, 1.18, 1.36, 1.72]),
    ],
)
def test_timm_auto_augment(text, posterize, colour):
    found = amounts(draws(timm(text)))
    assert found["Posterize"] == posterize
    if text == "v0r" or text == "v0":
        assert found["TranslateY"] == pytest.approx(signed(0.9 * 0.45 * 200))
        assert found["SolarizeAdd"] == [33, 77]
        assert found["Solarize"] == [51, 76, 102, 204, 256]
    else:
        assert found["Rotate"] == signed(9, 24, 27)
    assert found["Color"] == pytest.approx(colour)
    noisy = amounts(draws(timm(f"{text}-mstd0.5"), 200))
    assert len(noisy["Rotate"]) > 20


def test_timm_augmix_mixes_chains():
    policy = timm("augmix-m3-w3")
    chains = draws(policy)
    lengths = collections.Counter(map(len, chains))
    assert all(close(lengths[n] / len(chains), 1 / 3) for n in (1, 2, 3)) and len(lengths) == 3
    found = amounts(chains)
    assert len(found) == 13 and "Invert" not in found
    assert max(found["Rotate"]) <= 9 and max(found["TranslateX"]) <= 0.3 * 0.3 * 331
    assert amounts(draws(timm("augmix-m10-d1-mstd0"), 2000))["ShearX"] == signed(0.3)
    flat = np.full((9, 7, 3), 77, np.uint8)  # every operation of magnitude 0 leaves it
    assert np.array_equal(timm("augmix-m0")(flat, np.random.default_rng(0)), flat)


def test_timm_options():
    policy = build("TimmAutoAugment", interpolation="random", img_size=[64, 32]).policy
    filters = {s.resample for steps in draws(policy) for s in steps if s.name == "ShearX"}
    assert filters == {BILINEAR, BICUBIC}
    assert policy.fillcolor == (124, 116, 104)  # ImageNet's mean, as PaddleClas fills
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for prob in (0.0, 0.25):
        op = build("TimmAutoAugment", prob=prob, config_str="rand-n1-p1.0-m10-inc1")
        changed = [
            not np.array_equal(op(image, np.random.default_rng(seed)), image) for seed in range(400)
        ]
        assert np.mean(changed) == pytest.approx(prob * 0.95, abs=0.1 if prob else 0)
    assert parse_policy("rand-m9-mstd0.5-inc1") == ("rand", {"m": 9, "mstd": 0.5, "inc": 1})


# All of them

EVERY = [
    ("AutoAugment", {}),
    ("RandAugment", {"num_layers": 3, "magnitude": 9}),
    ("TrivialAugment", {}),
    ("TimmAutoAugment", {}),
    ("TimmAutoAugment", {"config_str": "v0-mstd0.5"}),
    ("TimmAutoAugment", {"config_str": "augmix"}),
    ("ColorJitter", {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}),
    ("RandomErasing", {"EPSILON": 1.0, "mode": "pixel"}),
]


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def odd_images():
    rng = np.random.default_rng(0)

    def noise(*shape):
        return rng.integers(0, 256, shape, dtype=np.uint8)

    wide = rng.integers(0, 65536, (9, 7), dtype=np.uint16)
    yield "one pixel", encoded(Image.fromarray(noise(1, 1, 3))), (1, 1)
    yield "one row", encoded(Image.fromarray(noise(1, 5000, 3))), (1, 5000)
    yield "one column", encoded(Image.fromarray(noise(5000, 1, 3))), (5000, 1)
    yield "large", encoded(Image.fromarray(noise(1200, 900, 3))), (1200, 900)
    yield "grey", encoded(Image.fromarray(noise(9, 7))), (9, 7)
    yield "RGBA", encoded(Image.fromarray(noise(9, 7, 4))), (9, 7)
    yield "CMYK", encoded(Image.fromarray(noise(9, 7, 4)[..., :3]).convert("CMYK"), "JPEG"), (9, 7)
    yield "16-bit grey", encoded(Image.fromarray(wide)), (9, 7)


@pytest.mark.parametrize("backend", ["cv2", "pil"])
@pytest.mark.parametrize(("name", "params"), EVERY)
def test_odd_images_keep_their_size(name, params, backend):
    compose = build_transforms(
        [{"DecodeImage": {"backend": backend}}, {name: params or None}], "ops"
    )
    for kind, data, shape in odd_images():
        count = 1 if kind == "large" else 5
        for seed in range(count):
            out = compose(data, np.random.default_rng(seed))
            assert out.shape == (*shape, 3) and out.dtype == np.uint8, kind
            assert np.array_equal(out, compose(data, np.random.default_rng(seed))), kind


@pytest.mark.parametrize(("name", "params"), EVERY)
def test_the_input_is_left_alone_and_the_generator_decides(name, params):
    image = np.random.default_rng(5).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    op, before = build(name, **params), image.copy()
    outs = {op(image, np.random.default_rng(seed)).tobytes() for seed in range(30)}
    assert len(outs) > 10 and np.array_equal(image, before)


@pytest.mark.parametrize("name", [name for name, _ in EVERY[:7]])
def test_values_other_than_bytes_are_refused(name):
    with pytest.raises(ValueError, match="expected an HWC uint8 image of 3 channels, got float32"):
        for seed in range(3):
            build(name)(np.zeros((4, 4, 3), np.float32), np.random.default_rng(seed))


# RandomErasing


def test_random_erasing_boxes_are_the_papers():
    """Area from sl to sh of the image, height / width from r1 to 1 / r1 (arXiv 1708.04896)."""
    stock = {"EPSILON": 0.25, "sl": 0.02, "sh": "1.0/3.0", "r1": 0.3, "attempt": 10}
    op = build("RandomErasing", use_log_aspect=True, mode="pixel", **stock)
    rng = np.random.default_rng(0)
    boxes = np.array([op.draw_box(224, 224, rng) for _ in range(4000)])
    area, aspect = boxes[:, 2] * boxes[:, 3] / 224**2, boxes[:, 2] / boxes[:, 3]
    assert 0.018 < area.min() < 0.03 and 0.32 < area.max() < 0.34
    assert 0.28 < aspect.min() < 0.32 and 3.1 < aspect.max() < 3.6
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.05)  # log-uniform, so symmetric
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert (boxes[:, 0] + boxes[:, 2] <= 224).all() and (boxes[:, 1] + boxes[:, 3] <= 224).all()
    plain = build("RandomErasing", **stock)
    boxes = np.array([plain.draw_box(2000, 2000, rng) for _ in range(4000)])
    assert (boxes[:, 2] / boxes[:, 3]).mean() == pytest.approx((0.3 + 1 / 0.3) / 2, abs=0.05)


def test_random_erasing_probability_and_values():
    ones = np.ones((32, 32, 3), np.float32)
    op = build("RandomErasing", EPSILON=0.25, mean=[2, 3, 4])
    outs = [op(ones, np.random.default_rng(seed)) for seed in range(2000)]
    changed = [out for out in outs if not np.array_equal(out, ones)]
    assert close(len(changed) / 2000, 0.25, 2000)
    values = {tuple(pixel) for out in changed for pixel in out.reshape(-1, 3)}
    assert values == {(1, 1, 1), (2, 3, 4)}
    for mode, colours in (("rand", 1), ("pixel", 20)):
        out = build("RandomErasing", EPSILON=1.0, mode=mode)(ones, np.random.default_rng(0))
        assert out.dtype == np.float32
        erased = out[(out != 1).any(axis=2)]
        assert len(np.unique(erased, axis=0)) >= colours
        assert (len(np.unique(erased, axis=0)) == 1) == (mode == "rand")
    noise = build("RandomErasing", EPSILON=1.0, sl=0.4, mode="pixel")
    erased = noise(np.full((400, 400, 3), 9.0, np.float32), np.random.default_rng(0))
    erased = erased[erased != 9]
    assert abs(erased.mean()) < 0.02 and erased.std() == pytest.approx(1, abs=0.02)
    stored = noise(np.full((400, 400, 3), 9, np.uint8), np.random.default_rng(0))
    assert stored.dtype == np.uint8 and stored[stored != 9].mean() == pytest.approx(128, abs=1)


def test_random_erasing_wants_channels_last():
    with pytest.raises(ValueError, match="put RandomErasing before ToCHWImage"):
        build("RandomErasing")(np.zeros((3, 8, 8), np.float32), np.random.default_rng(0))


# ColorJitter's ranges, as in paddle.vision and torchvision


def test_color_jitter_ranges():
    def spread(image, **params):
        op = build("ColorJitter", **params)
        return [op(image, np.random.default_rng(seed)).astype(int) for seed in range(800)]

    grey = np.full((2, 2, 3), 100, np.uint8)
    bright = [out[0, 0, 0] for out in spread(grey, brightness=0.4)]
    assert min(bright) == 60 and max(bright) in (139, 140)
    assert np.mean(bright) == pytest.approx(100, abs=3)
    assert max(out[0, 0, 0] for out in spread(grey, brightness=2.0)) == 255
    assert min(out[0, 0, 0] for out in spread(grey, brightness=2.0)) == 0
    changed = [out[0, 0, 0] != 100 for out in spread(grey, brightness=0.4, prob=0.3)]
    assert close(np.mean(changed), 0.3, 400)
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    # 0.01 turns are 2 steps; PIL's circle has 255, and both its ends are red.
    hues = {tuple(out[0, 0]) for out in spread(red, hue=0.01)}
    assert hues == {(200, 0, 0), (200, 5, 0), (200, 9, 0), (200, 0, 5)}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"AutoAugment": {"fillcolor": [1, 2]}}, "AutoAugment.fillcolor: expected 3 numbers"),
        ({"AutoAugment": {"policy": "v0"}}, "unknown key 'policy'"),
        ({"AutoAugmnt": None}, "did you mean 'AutoAugment'"),
        ({"RandAugment": {"num_layers": 0}}, "num_layers: expected a number >= 1"),
        ({"RandAugment": {"magnitude": 31}}, "magnitude: expected a number from 0 to 30, got 31"),
        ({"TrivialAugment": {"num_magnitude_bins": 1}}, "num_magnitude_bins: expected"),
        ({"TrivialAugment": {"interpolation": "area"}}, "interpolation: expected one of 'nearest'"),
        ({"TimmAutoAugment": {"prob": 1.5}}, "prob: expected a number from 0 to 1, got 1.5"),
        ({"TimmAutoAugment": {"mean": [1, 2, 3]}}, "mean: expected 3 numbers from 0 to 1"),
        ({"TimmAutoAugment": {"img_size": 0}}, "img_size: expected a number >= 1"),
        ({"TimmAutoAugment": {"config_str": "orignal"}}, "did you mean 'original'.* known: rand"),
        ({"TimmAutoAugment": {"config_str": ""}}, "unknown policy ''.*known: rand, augmix"),
        ({"TimmAutoAugment": {"config_str": "rand-x3"}}, "expected one of m, n, p.*got 'x3'"),
        ({"TimmAutoAugment": {"config_str": "rand-m"}}, "with a number in 'rand-m', got 'm'"),
        ({"TimmAutoAugment": {"config_str": "rand-m1e999"}}, "from 0 to 30 after 'm'"),
        ({"TimmAutoAugment": {"config_str": "rand-m9.5"}}, "a whole number from 0 to 30 after 'm'"),
        ({"TimmAutoAugment": {"config_str": "rand-m9-m3"}}, "each key once .*got 'm' again"),
        ({"TimmAutoAugment": {"config_str": "rand-p2"}}, "a number from 0 to 1 after 'p'"),
        ({"TimmAutoAugment": {"config_str": "rand-w1"}}, "from 0 to 0 after 'w'"),
        ({"TimmAutoAugment": {"config_str": "rand-w0-n14"}}, "at most n13 with w0"),
        ({"TimmAutoAugment": {"config_str": "v0-m9"}}, "expected one of mstd with a number"),
        ({"RandomErasing": {"EPSILON": -0.1}}, "EPSILON: expected a number from 0 to 1"),
        ({"RandomErasing": {"sl": 0.5, "sh": 0.4}}, "sl: expected 0 < sl <= sh <= 1"),
        ({"RandomErasing": {"r1": 0}}, "r1: expected a number above 0"),
        ({"RandomErasing": {"mode": "noise"}}, "mode: expected one of 'const', 'rand', 'pixel'"),
        ({"RandomErasing": {"attempt": 0}}, "attempt: expected a number >= 1"),
        ({"RandomErasing": {"mean": [0]}}, "mean: expected 3 numbers"),
        ({"ColorJitter": {"prob": 2}}, "prob: expected a number from 0 to 1, got 2"),
        ({"ColorJitter": {"prob": 0.5, "p": 0.5}}, "prob: expected either this or 'p'"),
    ],
)
def test_wrong_parameters_of_augmentation_are_named(entry, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms([entry], "ops")


def test_all_are_registered():
    assert {name for name, _ in EVERY} <= set(TRANSFORMS)
