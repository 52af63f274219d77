"""Small COCO and VOC folders for tests: `write_coco(root)`, `write_voc(root)`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

# The detection transforms that draw nothing: BGR, resized, mean subtracted.
EVAL_OPS = [
    {"DecodeImage": {"to_rgb": False}},
    {"Resize": {"target_size": 32}},
    {"NormalizeImage": {"scale": 1.0, "mean": [104, 117, 123], "std": [1, 1, 1], "order": "hwc"}},
    "Permute",
]
# All of the official preparation for training.
TRAIN_OPS = [
    EVAL_OPS[0],
    {"Augment": {"transform_ops": ["RandomCrop", "RandomDistort", "RandomExpand", "RandomFlip"]}},
    {"Resize": {"target_size": 32, "interp": "random"}},
    *EVAL_OPS[2:],
]
# Ids out of order and with gaps, as COCO's are; names in no order either.
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 90, "name": "bird"}]
# Image id -> (width, height) and boxes (category id, [x, y, w, h], is crowd). Image 9 is empty.
COCO_IMAGES = {
    5: ((40, 30), [(2, [4, 3, 20, 15], 0), (90, [10, 10, 11, 6], 1)]),
    3: ((30, 40), [(7, [0, 0, 30, 40], 0)]),
    9: ((24, 24), []),
    4: ((50, 20), [(7, [5, 5, 10, 10], 0), (2, [30, 2, 15, 15], 0), (90, [1, 1, 8, 18], 0)]),
}
# (year, list) -> image -> (width, height) and (name, [xmin, ymin, xmax, ymax], difficult).
VOC_IMAGES = {
    ("2007", "trainval"): {
        "000005": ((40, 30), [("dog", [1, 1, 20, 30], 0), ("cat", [5, 6, 15, 16], 1)]),
        "000012": ((30, 40), [("tvmonitor", [10, 10, 30, 40], 0)]),
    },
    ("2012", "trainval"): {"2008_000002": ((32, 32), [("aeroplane", [2, 3, 12, 13], 0)])},
    ("2007", "test"): {"000001": ((25, 25), [("person", [1, 1, 25, 25], 0)])},
}


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Random pixels, [height, width, 3] uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_picture(path: Path, width: int, height: int, seed: int = 0) -> np.ndarray:
    """Store `picture` without loss, whatever the suffix of `path`."""
    image = picture(width, height, seed)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return image


def coco_content(images: dict = COCO_IMAGES) -> dict:
    """An annotation file's content; annotations are numbered from 100."""
    annotations = [
        {
            "image_id": key,
            "category_id": category,
            "bbox": list(bbox),
            "area": bbox[2] * bbox[3],
            "iscrowd": crowd,
            "segmentation": [[0, 0, 1, 0, 1, 1]],
        }
        for key, (_, boxes) in images.items()
        for category, bbox, crowd in boxes
    ]
    return {
        "images": [
            {"id": key, "file_name": f"{key:012d}.jpg", "width": w, "height": h}
            for key, ((w, h), _) in images.items()
        ],
        "categories": [dict(category) for category in CATEGORIES],
        "annotations": [{"id": 100 + i, **entry} for i, entry in enumerate(annotations)],
    }


def write_coco(root: Path, images: dict = COCO_IMAGES, name: str = "train") -> dict:
    """Write `root/<name>/*.jpg` and `root/annotations/instances_<name>.json`.

    Returns COCODataset's arguments (without transforms).
    """
    for key, ((width, height), _) in images.items():
        write_picture(root / name / f"{key:012d}.jpg", width, height, key)
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco_content(images)))
    return {
        "dataset_dir": str(root),
        "image_dir": name,
        "anno_path": f"annotations/instances_{name}.json",
    }


def voc_xml(size: tuple[int, int], objects: list) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    parts = [
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        # Parts of a person have boxes of their own in some files.
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><bndbox>"
        + "".join(f"<{c}>{value}</{c}>" for c, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for name, box, difficult in objects
    ]
    width, height = size
    sides = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{sides}{''.join(parts)}</annotation>"


def write_voc(root: Path, lists: dict = VOC_IMAGES) -> dict:
    """Write `root/VOC2007` and the like; return VOCDataset's arguments (without transforms)."""
    for (year, split), images in lists.items():
        folder = root / f"VOC{year}"
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for name, (size, objects) in images.items():
            (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(size, objects))
            write_picture(folder / "JPEGImages" / f"{name}.jpg", *size, seed=len(name))
        text = "".join(f"{name}\n" for name in images)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
    return {"dataset_dir": str(root), "splits": ["2007 trainval", "2012 trainval"]}
