"""Attention whose packed projection is split."""

import itertools

import pytest
import torch
from torch import nn

from kegnet_pl.compression.attention import SplitAttention, split_attention

MASKS = [None, "additive", "boolean", "each head"]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("width", [12, 10], ids=["packed", "other keys"])
@pytest.mark.parametrize("batch", [4, None])
def test_it_computes_the_same(batch_first: bool, width: int, batch: int | None) -> None:
    torch.manual_seed(0)
    other = None if width == 12 else width
    attention = nn.MultiheadAttention(12, 3, batch_first=batch_first, kdim=other, vdim=other, bias=width == 12).eval()
    split = SplitAttention(attention)
    sizes = [] if batch is None else [batch]
    q, k = torch.randn(*sizes, 5, 12), torch.randn(*sizes, 7, width)
    if sizes and not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    last = torch.zeros(*sizes, 7, dtype=torch.bool).index_fill(-1, torch.tensor([6]), True)
    for kind, padded, (weights, average) in itertools.product(
        MASKS, [False, True], [(True, True), (True, False), (False, True)]
    ):
        mask = {
            None: None, "additive": torch.randn(5, 7), "boolean": torch.rand(5, 7) < 0.3,
            "each head": torch.randn((batch or 1) * 3, 5, 7),
        }[kind]  # fmt: skip
        padding = None if not padded else last
        if padding is not None and mask is not None and mask.dtype != torch.bool:
            padding = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
        options = {
            "key_padding_mask": padding,
            "attn_mask": mask,
            "need_weights": weights,
            "average_attn_weights": average,
        }
        for found, expected in zip(split(q, k, k, **options), attention(q, k, k, **options), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_encoders_of_torch_call_it(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).train(training)
    x = torch.randn(2, 5, 12)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 4] = True
    with torch.no_grad():
        plain, padded = encoder(x), encoder(x, src_key_padding_mask=padding)
        assert split_attention(encoder) == ["layers.0.self_attn", "layers.1.self_attn"]
        torch.testing.assert_close(encoder(x), plain, atol=1e-5, rtol=1e-5)
        found = encoder(x, src_key_padding_mask=padding)
        torch.testing.assert_close(found[~padding], padded[~padding], atol=1e-5, rtol=1e-5)


def test_dropout_is_that_of_the_attention() -> None:
    attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    split, x = SplitAttention(attention), torch.randn(2, 6, 8)
    assert not torch.equal(split(x, x, x)[0], split(x, x, x)[0])
    assert not torch.equal(split(x, x, x, need_weights=False)[0], split(x, x, x, need_weights=False)[0])
    split.eval()
    assert torch.equal(split(x, x, x)[0], split(x, x, x)[0])


def test_shared_attentions_stay_shared() -> None:
    first, second = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
    second.in_proj_weight = first.in_proj_weight
    network = nn.ModuleList([first, second, nn.MultiheadAttention(8, 2)])
    assert split_attention(network) == ["2"]


def test_the_packed_weight_can_be_read() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert torch.equal(SplitAttention(attention).in_proj_weight, attention.in_proj_weight)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_what_cannot_be_split_stays(options: dict[str, bool]) -> None:
    network = nn.Sequential(nn.MultiheadAttention(8, 2, **options))
    assert split_attention(network) == []
    with pytest.raises(ValueError, match="it adds a bias or zeros"):
        SplitAttention(network[0])
