"""Compression of networks by Tucker factorisation (PAPER section 4) or by pruning, with a report."""

from kegnet_pl.compression.activations import Calibration, LayerMoments, measure_layers
from kegnet_pl.compression.allocation import allocate_ranks
from kegnet_pl.compression.attention import split_attention
from kegnet_pl.compression.automatic import AutomaticPlan, Plan, plans_to_compare
from kegnet_pl.compression.costs import CostName
from kegnet_pl.compression.evbmf import EVBMF, evbmf
from kegnet_pl.compression.plan import CompressionPlan
from kegnet_pl.compression.pruning import PruningPlan
from kegnet_pl.compression.reconstruction import measure_agreement, reconstruct
from kegnet_pl.compression.report import Compressed, CompressionReport, LayerReport, ModelSize, measure_size
from kegnet_pl.compression.rules import Rule, fittable_layers
from kegnet_pl.compression.structure import describe_structure, restore_structure
from kegnet_pl.compression.tucker import TuckerConv, TuckerLayer, TuckerLinear, factorise

__all__ = [
    "EVBMF",
    "AutomaticPlan",
    "Calibration",
    "Compressed",
    "CompressionPlan",
    "CompressionReport",
    "CostName",
    "LayerMoments",
    "LayerReport",
    "ModelSize",
    "Plan",
    "PruningPlan",
    "Rule",
    "TuckerConv",
    "TuckerLayer",
    "TuckerLinear",
    "allocate_ranks",
    "describe_structure",
    "evbmf",
    "factorise",
    "fittable_layers",
    "measure_agreement",
    "measure_layers",
    "measure_size",
    "plans_to_compare",
    "reconstruct",
    "restore_structure",
    "split_attention",
]
