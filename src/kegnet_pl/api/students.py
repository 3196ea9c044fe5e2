"""Making a network smaller, and teaching it."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from kegnet_pl.api.sampling import SyntheticDataset
from kegnet_pl.compression import Compressed, CompressionPlan, Rule
from kegnet_pl.data.synthetic import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.networks import adapt_norm, count_classes, lacks_statistics, match_layers, prefer_channels_last
from kegnet_pl.networks.batch_norm import ADAPTING_SAMPLES
from kegnet_pl.networks.validation import FORWARD_ERRORS, check_trainable
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.runtime.errors import first_line
from kegnet_pl.training import FeatureDistillation, StudentModule
from kegnet_pl.training.base import LRSchedulerName
from kegnet_pl.training.fit import check_counts, check_numbers, fit_quietly, to_shape
from kegnet_pl.training.progress import StageProgress, make_console

Norm = Literal["batch", "frozen", "adapt"]


def compress(
    network: nn.Module,
    input_shape: int | Sequence[int],
    target: float | None = None,
    *,
    rules: Mapping[str, Any] | None = None,
    when_larger: Literal["keep", "compress"] = "keep",
) -> Compressed:
    """Factorise the layers of a network (Tucker-2 for convolutions, PAPER section 4).

    Args:
        network: Any network. It stays as it is.
        input_shape: Shape of one sample.
        target: Compression ratio of the whole network, parameters before / after.
        rules: Pattern of layer names -> rank (a number, a fraction, ``"evbmf"``, ``"full"``, ``"target"``, or
            ``{"in": ..., "out": ...}``); the first that matches a layer decides. None: every layer, for the target, or
            by EVBMF where there is none.
        when_larger: What to do with a layer that its factorisation would enlarge.

    Returns:
        ``network``, the smaller one, and ``report``, what every layer cost before and after.

    Raises:
        ValueError: If a pattern matches no layer, a rank is out of range, the target is out of reach, or the network
            does not take such samples.
    """
    if rules is None:
        rules = {"*": "evbmf" if target is None else "target"}
    input_shape = to_shape(input_shape)
    plan = CompressionPlan([Rule(layers, rank) for layers, rank in rules.items()], target, when_larger)
    try:
        compressed: Compressed = plan.apply(network, input_shape)
    except ValueError:  # the plan's own
        raise
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"Expected the network {type(network).__name__} to take samples of shape {tuple(input_shape)}, but it "
            f"failed: {first_line(error)}"
        ) from error
    return compressed


def distill(
    student: nn.Module,
    data: SyntheticDataset,
    *,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float = 1e-3,
    lr_scheduler: LRSchedulerName = "constant",
    temperature: float = 4.0,
    norm: Norm = "batch",
    dropout: bool = True,
    feature_distillation: float = 0.0,
    feature_distillation_layers: Sequence[str] | None = None,
    resample_each_epoch: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    device: Device = "auto",
    precision: Any = "32-true",
    logger: Logger | Sequence[Logger] | bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> nn.Module:
    """Teach a network what the teacher says about synthetic samples (PAPER sections 1 and 5).

    Args:
        student: Returns logits ``(B, C)``: a compressed teacher, or any other network. It stays as it is.
        data: Samples and the teacher's logits.
        epochs: Passes over the samples.
        batch_size: Samples of an optimiser step; an epoch leaves out what does not fill one, with ``shuffle`` other
            ones every time.
        lr: Adam's learning rate.
        lr_scheduler: ``"constant"``, or ``"cosine"``: down to zero after the last epoch.
        temperature: Softens both answers.
        norm: Statistics of the student's batch norm: ``"batch"``, of synthetic samples; ``"frozen"``, those it has;
            ``"adapt"``, set before training so that layers return what the teacher's do (:func:`adapt_norm`).
        dropout: Whether the student's dropout is on.
        feature_distillation: Weight of what the student's layers learn from the teacher's of the same names.
        feature_distillation_layers: Patterns of their names; None for all batch-norm layers.
        resample_each_epoch: Whether to draw new samples for every epoch.
        shuffle: Whether to shuffle every epoch.
        seed: Of the order, of dropout, and of fresh samples.
        device: Where to train; ``"auto"``: a GPU if there is one.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers.
        callbacks: Further Lightning callbacks.
        progress: Whether to show how far it is.

    Returns:
        The trained student, a copy; on the CPU, in evaluation mode.

    Raises:
        ValueError: If the student does not answer like the teacher, ``norm`` or ``feature_distillation`` ask for layers that it
            does not share with the teacher, or ``norm="frozen"`` for statistics that it does not have.
    """
    where = find_device(device)
    check_counts(epochs=(epochs, 1), batch_size=(batch_size, 1))
    check_numbers(precision, where, feature_distillation=(feature_distillation, 0), lr=(lr, 0))
    if norm not in (norms := get_args(Norm)):
        raise ValueError(f"Expected `norm` to be one of {norms}, but got {norm!r}.")
    if not isinstance(data, SyntheticDataset):
        raise ValueError(
            f"Expected `data` to be a SyntheticDataset, which `Generators.dataset` returns, but got {data!r}."
        )
    x, logits = data.tensors
    classes = count_classes(student, tuple(x.shape[1:]), "student")
    if classes != logits.shape[1]:
        raise ValueError(f"Expected a student of the teacher's {logits.shape[1]} classes, but got {classes}.")
    check_trainable(student, tuple(x.shape[1:]))
    if norm == "frozen" and lacks_statistics(student):
        raise ValueError(
            f"Expected a student whose batch norm has statistics beside norm='frozen', but {type(student).__name__} "
            f"has never seen a sample. Use norm='batch'."
        )
    network = prefer_channels_last(copy.deepcopy(student).requires_grad_(True), tuple(x.shape[1:])).to(where)
    module_data = SyntheticDataModule(
        data.source, data.teacher, samples=len(data), batch_size=batch_size, shuffle=shuffle, resample_each_epoch=resample_each_epoch, seed=seed,
        device=where,
    )  # fmt: skip
    module_data.splits["train"] = (x.to(where), logits.to(where))
    prefer_channels_last(module_data.teacher, tuple(x.shape[1:]))
    teacher = module_data.teacher.network
    if norm == "adapt":
        adapt_norm(network, teacher, module_data.subset(ADAPTING_SAMPLES))
    module = StudentModule(
        network,
        DistillationLoss(temperature),
        partial(torch.optim.Adam, lr=lr),
        lr_scheduler=lr_scheduler,
        norm="batch" if norm == "adapt" else norm,
        dropout=dropout,
        feature_distillation=FeatureDistillation(
            teacher, match_layers(teacher, feature_distillation_layers), feature_distillation
        )
        if feature_distillation
        else None,
        seed=seed,
    )
    bar = StageProgress("student", make_console()) if progress else None
    with bar or nullcontext():
        fit_quietly(
            module, module_data, epochs, where, precision, [*callbacks, *([bar] if bar is not None else [])], logger
        )
    return network.cpu().eval()
