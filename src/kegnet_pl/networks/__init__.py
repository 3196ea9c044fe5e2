"""Networks of the paper (PAPER section 3) and of CIFAR-10, and wrappers that freeze, stack, observe and check them."""

from kegnet_pl.networks.answers import (
    Answers,
    OutputKey,
    answers_of,
    as_classifier,
    explain_answers,
    restore_answers,
)
from kegnet_pl.networks.batch_norm import BatchNormMoments, adapt_norm, lacks_statistics, norm_layers
from kegnet_pl.networks.decoder import Decoder
from kegnet_pl.networks.ensemble import StackedModule, over_stack
from kegnet_pl.networks.execution import prefer_channels_last
from kegnet_pl.networks.feature_extractor import FeatureExtractor, match_layers
from kegnet_pl.networks.frozen import FrozenModule, TeacherNorm
from kegnet_pl.networks.generator import ConvGenerator, DenseGenerator, ImageGenerator
from kegnet_pl.networks.inputs import ValueRange, restore_inputs, value_range_of
from kegnet_pl.networks.lenet import LeNet5
from kegnet_pl.networks.mlp import MLP
from kegnet_pl.networks.resnet import CifarResNet, ResNet14
from kegnet_pl.networks.validation import count_classes

__all__ = [
    "MLP",
    "Answers",
    "BatchNormMoments",
    "CifarResNet",
    "ConvGenerator",
    "Decoder",
    "DenseGenerator",
    "FeatureExtractor",
    "FrozenModule",
    "ImageGenerator",
    "LeNet5",
    "OutputKey",
    "ResNet14",
    "StackedModule",
    "TeacherNorm",
    "ValueRange",
    "adapt_norm",
    "answers_of",
    "as_classifier",
    "count_classes",
    "explain_answers",
    "lacks_statistics",
    "match_layers",
    "norm_layers",
    "over_stack",
    "prefer_channels_last",
    "restore_answers",
    "restore_inputs",
    "value_range_of",
]
