"""Image transforms under PaddleClas's names; see `base` for what a transform is."""

from ppcls.data.transforms.base import TRANSFORMS, Compose, Transform, build_transforms
from ppcls.data.transforms.color import ColorJitter, NormalizeImage, ToCHWImage
from ppcls.data.transforms.decode import DecodeImage
from ppcls.data.transforms.geometry import CropImage, RandCropImage, RandFlipImage, ResizeImage

__all__ = [
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
