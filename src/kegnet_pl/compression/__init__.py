"""Compression of networks by Tucker factorisation, with a report (PAPER section 4)."""

from kegnet_pl.compression.evbmf import EVBMF, evbmf
from kegnet_pl.compression.plan import Compressed, CompressionPlan
from kegnet_pl.compression.report import CompressionReport, LayerReport, ModelSize, measure_size
from kegnet_pl.compression.rules import Rule
from kegnet_pl.compression.tucker import TuckerConv2d, TuckerLinear, factorise, restore_structure

__all__ = [
    "EVBMF",
    "Compressed",
    "CompressionPlan",
    "CompressionReport",
    "LayerReport",
    "ModelSize",
    "Rule",
    "TuckerConv2d",
    "TuckerLinear",
    "evbmf",
    "factorise",
    "measure_size",
    "restore_structure",
]
