"""Data sets: real data for teachers and for accuracy, synthetic data for students."""

from kegnet_pl.data.base import RealDataModule, Split
from kegnet_pl.data.digits import DigitsDataModule
from kegnet_pl.data.files import FilesDataModule
from kegnet_pl.data.images import CIFAR10, MNIST, SVHN, FashionMNIST, ImageDataModule
from kegnet_pl.data.synthetic import SyntheticDataModule
from kegnet_pl.data.tables import Letter, Pendigits, Shuttle, TableDataModule

__all__ = [
    "CIFAR10",
    "MNIST",
    "SVHN",
    "DigitsDataModule",
    "FashionMNIST",
    "FilesDataModule",
    "ImageDataModule",
    "Letter",
    "Pendigits",
    "RealDataModule",
    "Shuttle",
    "Split",
    "SyntheticDataModule",
    "TableDataModule",
]
