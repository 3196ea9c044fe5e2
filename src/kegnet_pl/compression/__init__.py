"""Compression of networks by Tucker factorisation, with a report (PAPER section 4)."""

from kegnet_pl.compression.activations import Calibration, LayerMoments, measure_layers
from kegnet_pl.compression.allocation import allocate_ranks
from kegnet_pl.compression.evbmf import EVBMF, evbmf
from kegnet_pl.compression.plan import CompressionPlan
from kegnet_pl.compression.reconstruction import measure_agreement, reconstruct
from kegnet_pl.compression.report import Compressed, CompressionReport, LayerReport, ModelSize, measure_size
from kegnet_pl.compression.rules import Rule, fittable_layers
from kegnet_pl.compression.tucker import TuckerConv2d, TuckerLinear, factorise, restore_structure

__all__ = [
    "EVBMF",
    "Calibration",
    "Compressed",
    "CompressionPlan",
    "CompressionReport",
    "LayerMoments",
    "LayerReport",
    "ModelSize",
    "Rule",
    "TuckerConv2d",
    "TuckerLinear",
    "allocate_ranks",
    "evbmf",
    "factorise",
    "fittable_layers",
    "measure_agreement",
    "measure_layers",
    "measure_size",
    "reconstruct",
    "restore_structure",
]
