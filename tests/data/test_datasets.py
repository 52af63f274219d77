import time

import numpy as np
import pytest
from PIL import Image

from ppcls.data.datasets import DATASETS, ImageFolderDataset, ImageNetDataset, read_list
from ppcls.data.datasets.folder import check_headers, held_out
from ppcls.data.sampler import SampleKey
from ppcls.utils.errors import ConfigError, DataError
from ppcls.utils.schema import build_named

OPS = [{"DecodeImage": None}, {"NormalizeImage": {"order": ""}}]


def write_images(root, names, size=(6, 5)):
    rng = np.random.default_rng(0)
    images = {}
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images[name] = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(images[name]).save(path)
    return images


def write_list(root, text, **options):
    path = root / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


# List files


def test_list_forms(tmp_path):
    text = b"\xef\xbb\xbfa b/c 1.png 3\r\n\r\n  \nd.png\t0\r\ne.png   12\n\xc3\xa9.png 1"
    paths, labels = read_list(write_list(tmp_path, text))
    assert paths == ["a b/c 1.png", "d.png", "e.png", "é.png"]
    assert labels.tolist() == [3, 0, 12, 1] and labels.dtype == np.int64
    paths, labels = read_list(write_list(tmp_path, "a,b.png,7\nc d.png, 1\n"), ",")
    assert paths == ["a,b.png", "c d.png"] and labels.tolist() == [7, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 1\n\nb.png\n", r"list.txt:3: expected 'path label' with a space.*'b.png'"),
        ("a.png 1\nb.png x\n", r"list.txt:2: expected a whole number as label, got 'x'"),
        ("a.png 1.0\n", r"list.txt:1: expected a whole number as label, got '1.0'"),
        ("a.png 1_0\n", r"list.txt:1: expected a whole number"),
        ("a.png 4\nb.png 5\n", r"list.txt:2: expected a label from 0 to 4, got 5 in 'b.png 5'"),
        ("a.png -1\n", r"list.txt:1: expected a label from 0 to 4, got -1"),
        ("\n \n", r"list.txt: expected lines 'path label', found none"),
        (b"a.png 1\nb\xff.png 1\n", r"list.txt:2: expected UTF-8 text, got byte 0xff"),
    ],
)
def test_list_errors_name_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_list(write_list(tmp_path, text), class_num=5)


def test_list_errors_without_class_num(tmp_path):
    with pytest.raises(DataError, match=r":1: expected a label >= 0, got -1"):
        read_list(write_list(tmp_path, "a.png -1"))
    with pytest.raises(DataError, match="none.txt: cannot read the list file: No such file"):
        read_list(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r":1: expected 'path label' with '\\t' between"):
        read_list(write_list(tmp_path, "a.png 1"), "\t")


def test_a_long_list_is_read_quickly(tmp_path):
    lines = (f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG {i % 1000}" for i in range(128_000))
    path = write_list(tmp_path, "\n".join(lines))
    start = time.perf_counter()
    paths, labels = read_list(path, class_num=1000)
    assert len(paths) == len(labels) == 128_000
    assert time.perf_counter() - start < 2.0  # a tenth of ImageNet; takes about 0.1 s


# ImageNetDataset


def imagenet(root, text, **options):
    options = {"transform_ops": OPS, **options}
    return ImageNetDataset(str(root), write_list(root, text), **options)


def test_samples_are_float_chw_with_label_and_index(tmp_path):
    images = write_images(tmp_path, ["x/a b.png", "c.png"])
    dataset = imagenet(tmp_path, "x/a b.png 2\nc.png 0\n")
    assert (len(dataset), dataset.class_num, dataset.labels.tolist()) == (2, 3, [2, 0])
    image, label, index = dataset[SampleKey(3, 0)]
    assert (image.dtype, image.shape, index) == (np.float32, (3, 5, 6), 0)
    assert label == 2 and label.dtype == np.int64
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((images["x/a b.png"] / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert dataset.describe(0) == str(tmp_path / "x" / "a b.png")
    explicit = imagenet(tmp_path, "x/a b.png 2\nc.png 0\n", transform_ops=[*OPS, "ToCHWImage"])
    assert np.array_equal(explicit[0].image, image)
    with pytest.raises(IndexError):
        dataset[2]


def test_augmentation_depends_on_seed_epoch_and_index(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"], size=(40, 40))
    ops = [{"DecodeImage": None}, {"RandCropImage": {"size": 16}}]
    text = "a.png 0\na.png 0\n"
    one, two = (imagenet(tmp_path, text, transform_ops=ops, seed=seed) for seed in (1, 2))
    first = one[SampleKey(0, 0)].image
    assert np.array_equal(first, one[0].image)
    assert np.array_equal(first, imagenet(tmp_path, text, transform_ops=ops, seed=1)[0].image)
    for other in (one[SampleKey(1, 0)], one[SampleKey(0, 1)], two[SampleKey(0, 0)]):
        assert not np.array_equal(first, other.image)


def test_relabel_numbers_the_labels_in_order(tmp_path):
    dataset = imagenet(tmp_path, "a 30\nb -4\nc 30\nd 7\n", relabel=True, class_num=3)
    assert dataset.labels.tolist() == [2, 0, 2, 1] and dataset.class_num == 3
    with pytest.raises(DataError, match="expected at most 2 classes"):
        imagenet(tmp_path, "a 30\nb -4\nc 30\nd 7\n", relabel=True, class_num=2)


def test_unusable_images_raise_with_path_or_give_none(tmp_path):
    write_images(tmp_path, ["good.png"])
    (tmp_path / "bad.png").write_bytes(b"not an image")
    text = "good.png 0\nbad.png 0\nmissing.png 0\n"
    dataset = imagenet(tmp_path, text)
    with pytest.raises(DataError, match=r"bad.png: cannot decode the image"):
        dataset[1]
    with pytest.raises(DataError, match=r"missing.png: cannot read the file: No such file"):
        dataset[2]
    skipping = imagenet(tmp_path, text, on_error="skip")
    assert [skipping[i] is None for i in range(3)] == [False, True, True]
    small = imagenet(tmp_path, text, transform_ops=[*OPS[:1], {"CropImage": {"size": 9}}])
    with pytest.raises(DataError, match="good.png: expected an image of at least 9x9"):
        small[0]
    raw = imagenet(tmp_path, text, transform_ops=[])
    with pytest.raises(DataError, match="good.png: expected an image of 3 dimensions"):
        raw[0]


def test_construction_errors_name_the_setting(tmp_path):
    section = {
        "name": "ImageNetDataset",
        "image_root": str(tmp_path / "none"),
        "cls_label_path": write_list(tmp_path, "a 0"),
        "transform_ops": OPS,
    }

    def build(**changes):
        return build_named(
            DATASETS, section | changes, "D.dataset", seed=0, class_num=2, config_path="D.dataset"
        )

    with pytest.raises(DataError, match="D.dataset.image_root: expected a folder"):
        build()
    root = {"image_root": str(tmp_path)}
    assert build(**root).class_num == 2
    with pytest.raises(ConfigError, match=r"D.dataset.transform_ops\[0\]: unknown transform"):
        build(transform_ops=[{"Decode": None}], **root)
    with pytest.raises(ConfigError, match="D.dataset.on_error: expected one of 'raise', 'skip'"):
        build(on_error="replace", **root)
    with pytest.raises(ConfigError, match="D.dataset: unknown key 'seed'"):
        build(seed=3, **root)


# ImageFolderDataset


def test_folder_per_class(tmp_path):
    write_images(tmp_path, ["dog/2.png", "cat/b/1.png", "cat/0.PNG", ".cache/x.png"])
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no class")
    dataset = ImageFolderDataset(str(tmp_path), OPS, class_num=4)
    assert dataset.class_names == ["cat", "dog"] and dataset.class_num == 4
    assert dataset.labels.tolist() == [0, 0, 1]
    assert dataset.describe(1) == str(tmp_path / "cat" / "b" / "1.png")
    assert dataset[2].image.shape == (3, 5, 6)


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="expected one folder per class, found none"):
        ImageFolderDataset(str(tmp_path), OPS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: expected images"):
        ImageFolderDataset(str(tmp_path), OPS)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="at most 1 classes"):
        ImageFolderDataset(str(tmp_path), OPS, class_num=1)
    with pytest.raises(DataError, match="image_root: expected a folder"):
        ImageFolderDataset(str(tmp_path / "none"), OPS)


def test_numbers_of_named_classes(tmp_path):
    """A folder that lacks a class numbers the others alike."""
    write_images(tmp_path, ["cat/0.png", "owl/1.png"])
    dataset = ImageFolderDataset(str(tmp_path), OPS, class_names=["cat", "dog", "owl"])
    assert dataset.labels.tolist() == [0, 2] and dataset.class_num == 3
    with pytest.raises(DataError, match="expected folders of the classes 'cat', found 'owl' besi"):
        ImageFolderDataset(str(tmp_path), OPS, class_names=["cat"])
    (tmp_path / "none" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"none: expected images \(.jpg.*found none"):
        ImageFolderDataset(str(tmp_path / "none"), OPS, class_names=["cat"])


def names_of(dataset):
    return {dataset.describe(index) for index in range(len(dataset))}


def test_a_share_of_each_class_is_held_out(tmp_path):
    sizes = {"ant": 10, "bee": 2, "cat": 13}
    write_images(
        tmp_path, [f"{n}/sub{i % 2}/{i}.png" for n, size in sizes.items() for i in range(size)]
    )
    for fraction, expected in ((0.2, [2, 1, 3]), (0.9, [9, 1, 12]), (0.01, [1, 1, 1])):
        options = {"val_fraction": fraction, "val_seed": 3}
        train, val, again = (
            ImageFolderDataset(str(tmp_path), OPS, part=part, seed=seed, **options)
            for part, seed in (("train", 0), ("val", 0), ("val", 5))
        )
        assert np.bincount(val.labels).tolist() == expected
        assert not names_of(train) & names_of(val) and len(train) + len(val) == 25
        assert names_of(val) == names_of(again)
        assert train.class_names == val.class_names == list(sizes)
    other = ImageFolderDataset(str(tmp_path), OPS, part="val", val_seed=4)
    assert names_of(other) != names_of(ImageFolderDataset(str(tmp_path), OPS, part="val"))
    write_images(tmp_path, ["dog/0.png"])
    with pytest.raises(DataError, match="class 'dog': expected at least 2 images to hold some out"):
        ImageFolderDataset(str(tmp_path), OPS, part="train")
    with pytest.raises(ValueError, match=r"val_fraction: expected a number in \(0, 1\), got 1"):
        ImageFolderDataset(str(tmp_path), OPS, part="val", val_fraction=1)


def test_new_images_leave_the_others_in_their_half():
    names = [f"{i}.png" for i in range(100)]
    before = held_out("cat", names, 0.2, 0)
    after = held_out("cat", [*names[::-1], "new.png"], 0.2, 0)
    assert len(before) == len(after) == 20 and len(before - after) <= 1
    assert len(held_out("dog", names, 0.2, 0) & before) < 15  # a draw of each class's own


def test_files_that_are_no_images_are_found_by_their_first_bytes(tmp_path):
    write_images(tmp_path, [f"cat/{i}.png" for i in range(3)])
    dataset = ImageFolderDataset(str(tmp_path), OPS)
    check_headers(dataset, "D")
    (tmp_path / "cat" / "1.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "cat" / "2.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"^D: expected images, found 2 of 3 files .*1.png', '.*2.pn"
    ):
        check_headers(dataset, "D")
