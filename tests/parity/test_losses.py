"""The loss terms have the values of the authors' release."""

import pytest
import torch
from torch import Tensor

from kegnet_pl.losses import ClassifierLoss, DecoderLoss, DistillationLoss, DiversityLoss, GeneratedBatch
from kegnet_pl.losses.diversity import Distance
from kegnet_pl.networks import Decoder, FrozenModule, TeacherNorm
from tests.parity.conftest import Teachers, below, relative_error

pytestmark = pytest.mark.data

DISTANCES: tuple[Distance, ...] = ("l1", "l2", "cosine")
each_distance = pytest.mark.parametrize("distance", DISTANCES)
each_channels = pytest.mark.parametrize("channels", [1, 3])


def _batch(
    tensors: dict[str, Tensor], channels: int, logits: Tensor | None = None, z_decoded: Tensor | None = None
) -> GeneratedBatch:
    mine = below(tensors, f"image_generator{channels}/")
    y = mine["y"]
    return GeneratedBatch(mine["z"], y, mine["out_train"], torch.zeros_like(y) if logits is None else logits, z_decoded)


@each_channels
@each_distance
def test_diversity(channels: int, distance: Distance, tensors: dict[str, Tensor]) -> None:
    loss = DiversityLoss(distance)(_batch(tensors, channels))
    assert relative_error(loss, tensors[f"image_generator{channels}/diversity_{distance}"]) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@each_distance
def test_diversity_of_a_large_batch(
    distance: Distance, dtype: torch.dtype, tolerance: float, tensors: dict[str, Tensor]
) -> None:
    z, x = (tensors[f"diversity_large/{name}"].to(dtype) for name in ("z", "x"))
    empty = torch.zeros(len(z), 2)
    loss = DiversityLoss(distance)(GeneratedBatch(z, empty, x, empty))

    assert loss.dtype == dtype
    assert relative_error(loss, tensors[f"diversity_large/{distance}"]) < tolerance


@pytest.mark.parametrize(("norm", "key"), [("batch", "train_bn"), ("running", "eval_bn")])
@pytest.mark.parametrize(("channels", "name"), [(1, "mnist"), (3, "svhn")])
def test_classifier(
    norm: TeacherNorm, key: str, channels: int, name: str, teacher: Teachers, tensors: dict[str, Tensor]
) -> None:
    frozen = FrozenModule(teacher(name), norm).train()
    logits = frozen(tensors[f"image_generator{channels}/out_train"])
    loss = ClassifierLoss()(_batch(tensors, channels, logits))

    assert relative_error(loss, tensors[f"image_generator{channels}/classifier_loss_{key}"]) < 1e-5


@pytest.mark.parametrize(("channels", "blocks"), [(1, 1), (3, 3)])
def test_decoder(channels: int, blocks: int, tensors: dict[str, Tensor]) -> None:
    decoder = Decoder((channels, 32, 32), blocks=blocks)
    decoder.load_state_dict(below(tensors, f"decoder{channels}/state/"))
    read = decoder.train()(tensors[f"image_generator{channels}/out_train"])
    loss = DecoderLoss()(_batch(tensors, channels, z_decoded=read))

    assert relative_error(loss, tensors[f"decoder{channels}/decoder_loss"]) < 1e-5


def test_distillation(tensors: dict[str, Tensor]) -> None:
    # The logarithm of probabilities is one choice of logits for them.
    logits = tensors["distillation/teacher_probabilities"].log()
    loss = DistillationLoss()(tensors["distillation/student_logits"], logits)

    assert relative_error(loss, tensors["distillation/loss"]) < 1e-5
