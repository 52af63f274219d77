"""Image transforms under PaddleClas's names, and box transforms under PaddleDetection's.

See `base` for what a transform is, and `boxes` for what a box transform is.
"""

from ppcls.data.transforms.base import TRANSFORMS, Compose, Transform, build_transforms
from ppcls.data.transforms.box_color import RandomDistort
from ppcls.data.transforms.box_geometry import RandomCrop, RandomExpand, RandomFlip, Resize
from ppcls.data.transforms.boxes import (
    BOX_TRANSFORMS,
    Augment,
    BoxCompose,
    Boxed,
    BoxTransform,
    build_box_transforms,
)
from ppcls.data.transforms.color import ColorJitter, NormalizeImage, ToCHWImage
from ppcls.data.transforms.decode import DecodeImage
from ppcls.data.transforms.geometry import CropImage, RandCropImage, RandFlipImage, ResizeImage

__all__ = [
    "BOX_TRANSFORMS",
    "Augment",
    "BoxCompose",
    "BoxTransform",
    "Boxed",
    "RandomCrop",
    "RandomDistort",
    "RandomExpand",
    "RandomFlip",
    "Resize",
    "build_box_transforms",
    "TRANSFORMS",
    "ColorJitter",
    "Compose",
    "CropImage",
    "DecodeImage",
    "NormalizeImage",
    "RandCropImage",
    "RandFlipImage",
    "ResizeImage",
    "ToCHWImage",
    "Transform",
    "build_transforms",
]
