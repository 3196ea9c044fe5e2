"""Multi-head attention with a dense layer for each projection, which can be factorised."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.compression.tucker import replace_layer


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` with the dense layers ``q_proj``, ``k_proj`` and ``v_proj``, not one packed projection.

    It computes the same and is called in the same way.

    Args:
        attention: Its weights are copied.

    Raises:
        ValueError: If :func:`find_obstacle` returns a reason: a subclass, ``add_bias_kv``, ``add_zero_attn``, or hooks.

    Shapes:
        Query ``(L, B, E)``, key ``(S, B, K)`` and value ``(S, B, V)``, or with ``batch_first`` ``(B, L, E)``, ``(B, S,
        K)`` and ``(B, S, V)``, or without ``B``; returns the output in the shape of the query, and the weights ``(B, L,
        S)`` or ``(B, heads, L, S)``, or None.
    """

    in_proj_bias = None
    """``nn.TransformerEncoderLayer`` looks for it; without it, the layer calls its parts instead of reading weights."""
    _qkv_same_embed_dim = True

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        obstacle = find_obstacle(attention)
        if obstacle is not None:
            raise ValueError(f"Expected an nn.MultiheadAttention that can be split, but {obstacle}.")
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        bias = attention.in_proj_bias
        if attention._qkv_same_embed_dim:
            weights: Iterable[Tensor] = attention.in_proj_weight.chunk(3)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        layers = [_dense(weight, value) for weight, value in zip(weights, biases, strict=True)]
        self.q_proj, self.k_proj, self.v_proj = layers
        self.out_proj = _dense(attention.out_proj.weight, attention.out_proj.bias)
        self.requires_grad_(attention.out_proj.weight.requires_grad)
        self.train(attention.training)

    @property
    def in_proj_weight(self) -> Tensor:
        """The packed projection ``(3 E, E)``, a new tensor, for code that reads it."""
        return torch.cat([layer.weight for layer in (self.q_proj, self.k_proj, self.v_proj)])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002  # a hint of torch: attn_mask is given, too
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and the attention weights; see ``nn.MultiheadAttention`` for the arguments."""
        batched = query.dim() == 3
        inputs = [x if batched else x[None] for x in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            layer(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer, x in zip(layers, inputs, strict=True)
        )
        mask = self._merge_masks(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) / self.head_dim**0.5
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(dim=3), dropout)
            out = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], weights
        return out if self.batch_first else out.transpose(0, 1), weights

    def _merge_masks(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Return both masks as one that is added to the scores ``(B, heads, L, S)``, None without any."""
        if mask is None and padding is None:
            return None
        total = q.new_zeros(len(q), 1, q.shape[2], k.shape[2])
        if mask is not None:
            mask = _to_float(mask, q)
            total = total + (mask.unflatten(0, (len(q), self.num_heads)) if mask.dim() == 3 else mask)
        if padding is not None:
            total = total + _to_float(padding if padding.dim() == 2 else padding[None], q)[:, None, None]
        return total


def _to_float(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask that is added to scores; True of a boolean mask is a position that is left out."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def find_obstacle(attention: nn.MultiheadAttention) -> str | None:
    """Return the reason why an attention cannot be split, or None."""
    if type(attention) is not nn.MultiheadAttention:
        return f"{type(attention).__name__} may use its weights in another way"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds a bias or zeros to keys and values (add_bias_kv, add_zero_attn)"
    if attention._forward_hooks or attention._forward_pre_hooks:
        return "it has hooks"
    return None


def split_attention(network: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Replace the ``nn.MultiheadAttention`` modules of a network by :class:`SplitAttention`, in place.

    Args:
        network: A network.
        names: Names of the modules; None for all that can be split and share no weight with another module.

    Returns:
        The names of the modules that were replaced.
    """
    if names is None:
        found = {name: module for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)}
        uses = Counter(id(p) for module in network.modules() for p in module.parameters(recurse=False))
        names = [
            name
            for name, module in found.items()
            if name and find_obstacle(module) is None and all(uses[id(p)] == 1 for p in module.parameters())
        ]
    names = list(names)
    for name in names:
        replace_layer(network, name, SplitAttention(network.get_submodule(name)))  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoder):
            split = [isinstance(inner, SplitAttention) for inner in module.modules()]
            module.use_nested_tensor = module.use_nested_tensor and not any(split)  # which only torch's class takes
    return names
