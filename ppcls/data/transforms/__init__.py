"""Image transforms under PaddleClas's names, and box transforms under PaddleDetection's.

See `base` for what a transform is, and `boxes` for what a box transform is.
"""

from ppcls.data.transforms.auto_augment import AutoAugment, RandAugment, TrivialAugment
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
from ppcls.data.transforms.erasing import RandomErasing
from ppcls.data.transforms.geometry import CropImage, RandCropImage, RandFlipImage, ResizeImage
from ppcls.data.transforms.timm_augment import TimmAutoAugment

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
    "AutoAugment",
    "ColorJitter",
    "Compose",
    "CropImage",
    "DecodeImage",
    "NormalizeImage",
    "RandAugment",
    "RandCropImage",
    "RandFlipImage",
    "RandomErasing",
    "ResizeImage",
    "TimmAutoAugment",
    "ToCHWImage",
    "Transform",
    "TrivialAugment",
    "build_transforms",
]
