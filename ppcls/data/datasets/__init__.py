"""Data sets: images with one label each."""

from ppcls.data.datasets.base import DATASETS, ClassificationDataset, OnError, Sample
from ppcls.data.datasets.cifar import Cifar10, Cifar100
from ppcls.data.datasets.folder import ImageFolderDataset
from ppcls.data.datasets.imagenet import ImageNetDataset
from ppcls.data.datasets.lists import read_list

__all__ = [
    "DATASETS",
    "Cifar10",
    "Cifar100",
    "ClassificationDataset",
    "ImageFolderDataset",
    "ImageNetDataset",
    "OnError",
    "Sample",
    "read_list",
]
