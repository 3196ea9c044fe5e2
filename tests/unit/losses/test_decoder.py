from dataclasses import replace

import pytest
import torch

from kegnet_pl.losses import DecoderLoss
from tests.unit.losses.samples import permuted, random_batch


def test_equals_the_loop() -> None:
    batch = random_batch()
    assert batch.z_decoded is not None
    total = 0.0
    for row, decoded in zip(batch.z.tolist(), batch.z_decoded.tolist(), strict=True):
        for value, read in zip(row, decoded, strict=True):
            total += (read - value) ** 2

    assert DecoderLoss()(batch).item() == pytest.approx(total / (7 * 5), rel=1e-12)


def test_is_zero_where_the_noise_is_found() -> None:
    batch = random_batch()
    assert DecoderLoss()(replace(batch, z_decoded=batch.z)).item() == 0


def test_does_not_depend_on_the_order() -> None:
    batch = random_batch()
    torch.testing.assert_close(DecoderLoss()(permuted(batch, torch.randperm(7))), DecoderLoss()(batch))


def test_gradcheck() -> None:
    batch = random_batch()
    assert batch.z_decoded is not None
    batch.z_decoded.requires_grad_()

    assert torch.autograd.gradcheck(lambda read: DecoderLoss()(replace(batch, z_decoded=read)), (batch.z_decoded,))


def test_needs_the_decoder() -> None:
    assert DecoderLoss.uses_decoder
    with pytest.raises(ValueError, match=r"`z_decoded`.*got None\. Run a decoder on `x` first"):
        DecoderLoss()(replace(random_batch(), z_decoded=None))
