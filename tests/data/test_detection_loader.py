"""Batches of images with boxes."""

import json

import numpy as np
import pytest
from detection_folders import COCO_IMAGES, EVAL_OPS, TRAIN_OPS, write_coco, write_picture, write_voc

from ppcls.data.loader import DetectionBatch, build_eval_loader, build_train_loader
from ppcls.utils.errors import ConfigError, DataError


def section(root, ops, workers=0, batch_size=2, shuffle=True, **dataset):
    return {
        "dataset": {"name": "COCODataset", **write_coco(root), "transform_ops": ops, **dataset},
        "sampler": {"batch_size": batch_size, "shuffle": shuffle},
        "loader": {"num_workers": workers},
    }


def train(root, *, rank=0, world_size=1, **options):
    config = section(root, TRAIN_OPS, **options)
    where = {"seed": 3, "class_num": 4, "rank": rank, "world_size": world_size}
    return build_train_loader(config, "D.Train", **where)


def evaluation(root, *, rank=0, world_size=1, ops=EVAL_OPS, **options):
    config = section(root, ops, shuffle=False, **options)
    return build_eval_loader(config, "D.Eval", class_num=4, rank=rank, world_size=world_size)


def read(loader, epochs=(0, 1)):
    batches = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        batches += [[np.asarray(item) for item in batch] for batch in loader]
    return batches


def test_batches_are_padded_to_their_own_most_boxes(tmp_path):
    first, second = evaluation(tmp_path)
    assert isinstance(first, DetectionBatch)
    assert first.images.shape == [2, 3, 32, 32] and first.boxes.shape == [2, 2, 4]
    assert first.labels.numpy().tolist() == [[1, 3], [2, 0]]
    assert first.boxes.numpy()[1, 1].tolist() == [0, 0, 0, 0]
    kinds = [str(item.dtype).split(".")[-1] for item in first]
    assert kinds == ["float32", "float32", "int64", "int64", "int64"]
    assert isinstance(first.sizes, np.ndarray) and first.sizes.tolist() == [[30, 40], [40, 30]]
    # Image 9 has no box, image 4 has three.
    assert second.labels.numpy().tolist() == [[0, 0, 0], [2, 1, 3]]
    assert second.indices.tolist() == [2, 3]
    dataset = evaluation(tmp_path).dataset
    assert np.array_equal(first.boxes.numpy()[0], dataset[0].boxes)
    assert [dataset.image_ids[i] for i in second.indices] == [9, 4]


def test_a_batch_without_boxes_has_room_for_one(tmp_path):
    batch = list(evaluation(tmp_path, batch_size=1))[2]
    assert batch.boxes.shape == [1, 1, 4] and batch.labels.numpy().tolist() == [[0]]


def test_batches_do_not_depend_on_workers(tmp_path):
    expected = read(train(tmp_path))
    for batch, other in zip(expected, read(train(tmp_path, workers=2)), strict=True):
        for item, found in zip(batch, other, strict=True):
            assert item.dtype == found.dtype and np.array_equal(item, found)
    assert sorted(np.concatenate([batch[3] for batch in expected[:2]])) == [0, 1, 2, 3]


def test_a_rank_may_get_an_empty_batch(tmp_path):
    for workers in (0, 1):
        loader = train(tmp_path, batch_size=3, rank=1, world_size=2, workers=workers)
        batch = next(iter(loader))
        assert batch.images.shape[0] == 2
    images = {key: COCO_IMAGES[key] for key in (5, 3, 4)}
    write_coco(tmp_path, images, "few")
    few = {"image_dir": "few", "anno_path": "annotations/instances_few.json"}
    loader = train(tmp_path, batch_size=1, rank=1, world_size=2, **few)
    full, empty = list(loader)
    assert full.images.shape == [1, 3, 32, 32] and isinstance(empty, DetectionBatch)
    assert [tuple(item.shape) for item in empty] == [(0, 3, 0, 0), (0, 1, 4), (0, 1), (0,), (0, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images_are_skipped_or_named(tmp_path, workers):
    def damaged(**options):
        loader = evaluation(tmp_path, workers=workers, **options)
        (tmp_path / "train" / "000000000003.jpg").write_bytes(b"no image")
        write_picture(tmp_path / "train" / "000000000005.jpg", 9, 9)
        return loader

    loader = damaged(on_error="skip")
    batches = list(loader)
    assert [batch.indices.tolist() for batch in batches] == [[], [2, 3]] and loader.skipped == 2
    assert isinstance(batches[0], DetectionBatch) and batches[0].sizes.shape == (0, 2)
    with pytest.raises(DataError, match=r"005.jpg: expected an image of 40x30"):
        list(damaged())


def test_sizes_must_agree_within_a_batch(tmp_path):
    with pytest.raises(DataError, match=r"003.jpg: expected an image of 3x30x40 like .*005.jpg"):
        list(evaluation(tmp_path, ops=EVAL_OPS[:1]))


def test_voc_from_a_section(tmp_path):
    config = {
        "dataset": {"name": "VOCDataset", **write_voc(tmp_path), "transform_ops": TRAIN_OPS},
        "sampler": {"batch_size": 3},
        "loader": {"num_workers": 0},
    }
    (batch,) = build_train_loader(config, "D.Train", class_num=21)
    assert batch.images.shape == [3, 3, 32, 32] and int(batch.labels.max()) <= 20


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(DataError, match="expected 20 categories"):
        build_train_loader(section(tmp_path, TRAIN_OPS), "D.Train", class_num=21)
    with pytest.raises(ConfigError, match=r"D.Train.dataset.transform_ops\[1\]: CropImage would"):
        ops = [EVAL_OPS[0], {"CropImage": {"size": 8}}]
        build_train_loader(section(tmp_path, ops), "D.Train", class_num=4)
    path = tmp_path / "annotations" / "instances_train.json"
    config = section(tmp_path, TRAIN_OPS)
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match="expected images, found none"):
        build_train_loader(config, "D.Train", class_num=4)
