"""Plain networks of the paper (PAPER section 3): teachers, generators, decoder, and the frozen teacher."""

from kegnet_pl.networks.batch_norm import NormWatch, adapt_norm, lacks_statistics, norm_layers
from kegnet_pl.networks.decoder import Decoder
from kegnet_pl.networks.ensemble import StackedModule, over_stack
from kegnet_pl.networks.execution import prefer_channels_last
from kegnet_pl.networks.frozen import FrozenModule, TeacherNorm
from kegnet_pl.networks.generator import DenseGenerator, ImageGenerator
from kegnet_pl.networks.hooks import WatchedModule, layers_named
from kegnet_pl.networks.lenet import LeNet5
from kegnet_pl.networks.mlp import MLP
from kegnet_pl.networks.resnet import ResNet14
from kegnet_pl.networks.validation import count_classes

__all__ = [
    "MLP",
    "Decoder",
    "DenseGenerator",
    "FrozenModule",
    "ImageGenerator",
    "LeNet5",
    "NormWatch",
    "ResNet14",
    "StackedModule",
    "TeacherNorm",
    "WatchedModule",
    "adapt_norm",
    "count_classes",
    "lacks_statistics",
    "layers_named",
    "norm_layers",
    "over_stack",
    "prefer_channels_last",
]
