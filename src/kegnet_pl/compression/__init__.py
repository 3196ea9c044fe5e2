"""Any network in, a smaller one and its ledger out (PAPER section 4)."""

from kegnet_pl.compression.evbmf import EVBMF, evbmf
from kegnet_pl.compression.ledger import Cost, Ledger, LedgerRow, measure_cost
from kegnet_pl.compression.plan import Compressed, CompressionPlan
from kegnet_pl.compression.rules import Rule
from kegnet_pl.compression.tucker import TuckerConv2d, TuckerLinear, factorise, restore_structure

__all__ = [
    "EVBMF",
    "Compressed",
    "CompressionPlan",
    "Cost",
    "Ledger",
    "LedgerRow",
    "Rule",
    "TuckerConv2d",
    "TuckerLinear",
    "evbmf",
    "factorise",
    "measure_cost",
    "restore_structure",
]
