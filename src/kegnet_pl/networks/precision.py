"""Where half precision is not enough."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return float16 and bfloat16 tensors as float32, wider ones as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
