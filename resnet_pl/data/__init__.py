"""Data modules, crops and batch transforms."""

from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch_transforms import BatchTransform, Cutout, PadCrop, PCAColor, RandomFlip
from resnet_pl.data.cifar import CIFAR10, CIFAR100
from resnet_pl.data.crops import CenterCrop, Crop, Letterbox, RandomResizedCrop, ResizeCenterCrop, ScaleCrop
from resnet_pl.data.digits import Digits
from resnet_pl.data.flowers import Flowers
from resnet_pl.data.folder import ImageFolder
from resnet_pl.data.hf_dataset import HFDataset
from resnet_pl.data.image_table import ImageTable
from resnet_pl.data.imagenet import ImageNet
from resnet_pl.data.mixup import CutMix, MixUp, RandomChoice
from resnet_pl.data.tensors import TensorDataModule

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "BatchTransform",
    "CenterCrop",
    "Crop",
    "CutMix",
    "Cutout",
    "Digits",
    "Flowers",
    "HFDataset",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "ImageTable",
    "Letterbox",
    "MixUp",
    "PCAColor",
    "PadCrop",
    "RandomChoice",
    "RandomFlip",
    "RandomResizedCrop",
    "ResizeCenterCrop",
    "ScaleCrop",
    "TensorDataModule",
]
