"""Data sets: images with one label each, and images with boxes."""

from ppcls.data.datasets.base import (
    DATASETS,
    ClassificationDataset,
    ImageDataset,
    OnError,
    Sample,
)
from ppcls.data.datasets.boxes import GroundTruth
from ppcls.data.datasets.cifar import Cifar10, Cifar100
from ppcls.data.datasets.coco import COCODataset
from ppcls.data.datasets.detection import DetectionDataset, DetectionSample
from ppcls.data.datasets.folder import ImageFolderDataset
from ppcls.data.datasets.imagenet import ImageNetDataset
from ppcls.data.datasets.lists import read_list
from ppcls.data.datasets.shards import WebDataset
from ppcls.data.datasets.voc import VOCDataset

__all__ = [
    "DATASETS",
    "COCODataset",
    "Cifar10",
    "Cifar100",
    "ClassificationDataset",
    "DetectionDataset",
    "DetectionSample",
    "GroundTruth",
    "ImageDataset",
    "ImageFolderDataset",
    "ImageNetDataset",
    "OnError",
    "Sample",
    "VOCDataset",
    "WebDataset",
    "read_list",
]
