"""Compression of a network, and distillation of the teacher into a student."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Literal, get_args, overload

import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from kegnet_pl.api.checks import (
    TRIAL_SAMPLES,
    TRY_PRUNING,
    check_student,
    describe_agreement,
    describe_comparison,
    explain_scale,
)
from kegnet_pl.api.engine import adam, fit_compression, fit_student, fit_students, stacking_obstacle
from kegnet_pl.api.sampling import SyntheticDataset
from kegnet_pl.compression import (
    AutomaticPlan,
    Compressed,
    CompressionPlan,
    CostName,
    Plan,
    PruningPlan,
    Rule,
    TuckerLayer,
    plans_to_compare,
)
from kegnet_pl.compression.dependencies import has_library
from kegnet_pl.data.synthetic import SyntheticDataModule
from kegnet_pl.networks import (
    OutputKey,
    answers_of,
    as_classifier,
    count_classes,
    lacks_statistics,
    restore_answers,
)
from kegnet_pl.networks.execution import first_weight
from kegnet_pl.networks.handling import copy_network, unfreeze_frozen, warn_of_hooks
from kegnet_pl.networks.kept import kept_channels
from kegnet_pl.networks.validation import check_module, materialise, to_shape
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.runtime.storage import StorageLimits
from kegnet_pl.settings import (
    DistillationSettings,
    LRSchedulerName,
    Outputs,
    Parallel,
    Precision,
    StudentNorm,
    read_arguments,
)
from kegnet_pl.sources import Procedural, SyntheticSource
from kegnet_pl.training.fit import QuietFit
from kegnet_pl.training.generator_module import can_vectorize, should_vectorize
from kegnet_pl.training.progress import StageProgress, make_console


def compress(
    network: nn.Module,
    input_shape: int | Sequence[int],
    target: float | None = None,
    *,
    method: Literal["auto", "tucker", "pruning"] = "auto",
    rules: Mapping[str, Any] | Sequence[Rule] | None = None,
    when_larger: Literal["keep", "compress"] = "keep",
    fit: Literal["function", "weights"] = "function",
    fold: bool | None = None,
    by: CostName = "parameters",
    round_to: int | None = None,
    batch_size: int = 64,
    source: SyntheticSource | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    samples: int = 2_000,
    oversampling: int = 4,
    matching: float = 1.0,
    outputs: Outputs = "auto",
    output_key: OutputKey = None,
    seed: int = 0,
    progress: bool = True,
) -> Compressed:
    """Factorise the layers of a network (PAPER section 4), or prune it, without real data or training.

    Args:
        network: Any network; it is not changed.
        input_shape: Shape of one sample.
        target: Compression ratio of the whole network, before / after, for the quantity in ``by``.
        method: ``"tucker"``: layers are factorised (Tucker-2 for convolutions). ``"pruning"``: channels, units and
            attention heads are removed from all layers that share them (:class:`PruningPlan`). The layers keep their
            classes and become narrower. It needs a target and the package ``torch-pruning``. ``"auto"``: pruning, and
            factorisation with and without merged factors, are compared. The network that agrees most with the original
            on held-out samples is kept (:class:`AutomaticPlan`). Without ``torch-pruning``, only factorisations are
            compared. ``"auto"`` means ``"tucker"`` without a target, with ``rules``, ``when_larger`` or ``fold``, and
            for ``fit="weights"``.
        rules: Pattern of layer names -> rank (a number, a fraction, ``"evbmf"``, ``"full"``, ``"target"``, or ``{"in":
            ..., "out": ...}``). The first pattern that matches a layer applies. None: all layers, with ranks for the
            target, or with EVBMF ranks without a target.
        when_larger: Treatment of a layer whose factorisation does not reduce its cost in ``by``: ``"keep"`` leaves it
            unchanged, ``"compress"`` factorises it.
        fit: ``"function"``: ranks for the target are chosen to change the logits least on synthetic samples. Layers are
            fitted one after another to the outputs of the original layers on these samples. ``"weights"``: ranks and
            factors depend on the weights alone, as in the paper.
        fold: True to merge redundant factors: a dense layer or 1x1 convolution becomes two layers with the smaller
            rank, and a side at full rank gets no layer. False for the paper's three layers. None: True for
            ``fit="function"``.
        by: Quantity of the target: ``"parameters"``, ``"macs"`` (multiply-accumulates) or ``"latency"``, the time for a
            batch, measured on the device of the network. Fewer parameters do not always mean lower latency.
        round_to: Ranks that are chosen for the target, or channels that are kept, are multiples of this number, or all.
            None: 8 for ``by="latency"``, otherwise 1.
        batch_size: Samples of the batch for ``by="latency"``.
        source: Source of the samples. None: :class:`Procedural`, which draws all kinds of images, signals or rows.
        mean: Mean of the pixels of each channel, in [0, 1], with which inputs are normalised. With ``mean`` and
            ``std``, the images of the default source have the right range. Without them, their values are about N(0,
            1).
        std: Standard deviation of the pixels.
        samples: Number of samples, at least 10.
        oversampling: Candidates per sample. The network selects samples with balanced classes, nearest to the
            statistics of its batch norm (:class:`SelectedSource`). 1: samples are used as they are drawn.
        matching: Share of the samples to match to the statistics of the network's batch norm, from 0 to 1
            (:class:`MatchedSource`). Without batch norm, samples stay as they are.
        outputs: Type of the output of the network, see :func:`train_generators`.
        output_key: Key, attribute or position of the output tensor, if it returns several; None finds it.
        seed: Seed of the samples.
        progress: True to print the progress; False for none.

    Returns:
        ``network``: the smaller network, with the same type of output as the original. ``report``: the size of every
        layer before and after. ``fitted``: the names of the layers that were fitted (a fit that makes the network worse
        on held-out samples is undone). ``method``; and, for ``"auto"``, ``compared``: the agreement of each method.
        ``agreement``: the share of held-out samples to which both networks give the same class. It is None for
        ``fit="weights"``, or if the network gives one class to all samples. Below 0.9, for pruning below 0.8, there is
        a warning.

    Raises:
        ValueError: If a pattern matches no layer, a rank is out of range, the target is out of reach, or the network
            does not accept such samples, or settings do not fit ``fit`` or ``method``.
        ConfigError: If ``method="pruning"`` and ``torch-pruning`` is not installed.
    """
    if fit not in ("function", "weights"):
        raise ValueError(f"Expected `fit` to be 'function' or 'weights', but got {fit!r}.")
    shape = to_shape(input_shape)
    if method not in ("auto", "tucker", "pruning"):
        raise ValueError(f"Expected `method` to be 'auto', 'tucker' or 'pruning', but got {method!r}.")
    speed: dict[str, Any] = {"by": by, "round_to": round_to, "batch_size": batch_size}
    default = {"rules": rules is None, "when_larger": when_larger == "keep", "fit": fit == "function",
               "fold": fold is None}  # fmt: skip
    plan: Plan
    if method == "pruning":
        _check_pruning(**default)
        plan = PruningPlan(target, **speed)
    elif method == "auto" and target is not None and all(default.values()):
        plan = AutomaticPlan(plans_to_compare(_to_rules(None, target), target, pruning=has_library(), **speed))
    else:
        folds = fit == "function" if fold is None else fold
        plan = CompressionPlan(_to_rules(rules, target), target, when_larger, folds, **speed)
    bar = StageProgress("compression", make_console(quiet=not progress))
    warn_of_hooks(network)
    if fit == "weights":
        check_module(network, "network")
        materialise(network, shape)
        return fit_compression(network, shape, plan, bar)
    classifier = as_classifier(network, shape, outputs, output_key)
    if source is None:
        source = Procedural(shape, mean=mean, std=std)
        weight = first_weight(classifier)
        for line in explain_scale(classifier, source.sample(TRIAL_SAMPLES, seed).to(weight)):
            warnings.warn(line, stacklevel=2)
    compressed = fit_compression(classifier, shape, plan, bar, source, samples, oversampling, matching, seed)
    if classifier is not network:
        restore_answers(compressed.network)
    if compressed.compared:
        bar.console.print(describe_comparison(compressed.method, compressed.compared, compressed.held_out))
    sentence = describe_agreement(compressed.agreement, compressed.method)
    if sentence is not None:
        warnings.warn(sentence if has_library() else f"{sentence} {TRY_PRUNING}", stacklevel=2)
    return compressed


def _to_rules(rules: Mapping[str, Any] | Sequence[Rule] | None, target: float | None) -> list[Rule]:
    if rules is None:
        rules = {"*": "evbmf" if target is None else "target"}
    return [Rule(layers, rank) for layers, rank in rules.items()] if isinstance(rules, Mapping) else list(rules)


def _trainable(x: Tensor) -> Tensor:
    """Return a tensor that training may use: a copy of one that was made in inference mode."""
    return x.clone() if x.is_inference() else x


def _check_pruning(**default: bool) -> None:
    """Check that arguments of a factorisation have their defaults, given as ``name=True``."""
    changed = [f"`{name}`" for name, is_default in default.items() if not is_default]
    if changed:
        raise ValueError(
            f"Expected {', '.join(changed)} to be left out with method='pruning', which has no ranks and always needs "
            f"samples. Remove it, or use method='tucker'."
        )


@overload
def distill(
    student: nn.Module | Compressed, data: SyntheticDataset, *, epochs: int = ..., batch_size: int = ...,
    lr: float | Literal["auto"] = ..., lr_scheduler: LRSchedulerName = ..., temperature: float = ...,
    norm: StudentNorm | None = ..., dropout: bool = ..., reconstruct: bool = ..., feature_distillation: float = ...,
    feature_distillation_layers: Sequence[str] | None = ..., outputs: Outputs = ..., output_key: OutputKey = ...,
    resample_each_epoch: bool = ..., shuffle: bool = ..., compile: bool = ..., cuda_graphs: bool = ...,
    seed: int = ..., parallel: Parallel = ..., device: Device = ..., precision: Precision = ...,
    logger: Logger | Sequence[Logger] | bool = ..., callbacks: Sequence[Callback] = ..., progress: bool = ...,
) -> nn.Module: ...  # fmt: skip


@overload
def distill(
    student: nn.Module | Compressed, data: SyntheticDataset, *, epochs: int = ..., batch_size: int = ...,
    lr: float | Literal["auto"] = ..., lr_scheduler: LRSchedulerName = ..., temperature: float = ...,
    norm: StudentNorm | None = ..., dropout: bool = ..., reconstruct: bool = ..., feature_distillation: float = ...,
    feature_distillation_layers: Sequence[str] | None = ..., outputs: Outputs = ..., output_key: OutputKey = ...,
    resample_each_epoch: bool = ..., shuffle: bool = ..., compile: bool = ..., cuda_graphs: bool = ...,
    seed: Sequence[int], parallel: Parallel = ..., device: Device = ..., precision: Precision = ...,
    logger: Logger | Sequence[Logger] | bool = ..., callbacks: Sequence[Callback] = ..., progress: bool = ...,
) -> list[nn.Module]: ...  # fmt: skip


def distill(
    student: nn.Module | Compressed,
    data: SyntheticDataset,
    *,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float | Literal["auto"] = "auto",
    lr_scheduler: LRSchedulerName = "constant",
    temperature: float = 4.0,
    norm: StudentNorm | None = None,
    dropout: bool = True,
    reconstruct: bool = False,
    feature_distillation: float = 0.0,
    feature_distillation_layers: Sequence[str] | None = None,
    outputs: Outputs = "auto",
    output_key: OutputKey = None,
    resample_each_epoch: bool = False,
    shuffle: bool = True,
    compile: bool = False,
    cuda_graphs: bool = True,
    seed: int | Sequence[int] = 0,
    parallel: Parallel = "auto",
    device: Device = "auto",
    precision: Precision = "32-true",
    logger: Logger | Sequence[Logger] | bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> nn.Module | list[nn.Module]:
    """Train a student on the teacher's logits of synthetic samples (PAPER sections 1 and 5).

    Args:
        student: A compressed teacher, as :func:`compress` returns it, or any classifier. It is not changed. Weights
            without ``requires_grad`` stay as they are.
        data: Samples and the teacher's logits.
        epochs: Passes over the samples.
        batch_size: Samples per optimiser step. An epoch skips an incomplete last batch; with ``shuffle``, it skips
            different samples every time.
        lr: Adam's learning rate. ``"auto"``: short trainings on four fifths of the samples compare learning rates from
            3e-5 to 3e-3. The one with the lowest loss on the other samples is used. A network that is close to its
            teacher gets a low learning rate.
        lr_scheduler: ``"constant"``, or ``"cosine"``: down to zero after the last epoch.
        temperature: Divides the logits of teacher and student.
        norm: Statistics of the student's batch norm. ``"batch"``: those of synthetic samples. ``"frozen"``: the stored
            ones, without change. ``"adapt"``: those of synthetic samples, with scale and shift that match outputs of
            the teacher's layers (:func:`adapt_norm`). None: ``"frozen"`` for a compressed network, which has the
            statistics of the teacher's data; otherwise ``"batch"``.
        dropout: False to turn the student's dropout off.
        reconstruct: True to fit the layers of a compressed teacher to the teacher's function on the samples, in closed
            form, before training, as :func:`compress` does with its own samples.
        feature_distillation: Weight of the loss between outputs of layers that have the same name in student and
            teacher.
        feature_distillation_layers: Patterns of the names of these layers; None for all batch-norm layers.
        outputs: Type of the output of the student, see :func:`train_generators`. A compressed teacher has
            the same type of output as the teacher.
        output_key: Key, attribute or position of the output tensor, if it returns several; None finds it.
        resample_each_epoch: True to draw new samples for every epoch.
        shuffle: True to shuffle every epoch.
        compile: True to compile the student with ``torch.compile``.
        cuda_graphs: True to record a step on one GPU and replay it.
        seed: Seed of the order, of dropout, and of new samples; or several seeds, for one student each.
        parallel: For several seeds. ``"vmap"``: students are trained as one batch of networks. Rounding and dropout
            masks differ from those of a student that is trained alone. ``"sequential"``: students are trained one after
            another. ``"auto"``: vmap on a GPU and for tables, if ``lr`` is a number and torch can vectorise the
            student.
        device: Device of the training; ``"auto"`` is a GPU if there is one.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers.
        callbacks: Further Lightning callbacks.
        progress: True to print the progress.

    Returns:
        The trained student, a copy; on the CPU, in evaluation mode. For several seeds, a list in their order.

    Raises:
        ValueError: If an argument is out of range, or the student does not fit the teacher or the settings.
            ``parallel="vmap"`` requires students that torch can vectorise, a number as ``lr``, and no feature
            distillation.
    """
    if not isinstance(data, SyntheticDataset):
        raise ValueError(
            f"Expected `data` to be a SyntheticDataset, which `Generators.dataset` returns, but got {data!r}."
        )
    seeds = _to_seeds(seed)
    if parallel not in get_args(Parallel):
        raise ValueError(f"Expected `parallel` to be one of {', '.join(get_args(Parallel))}, but got {parallel!r}.")
    student = student.network if isinstance(student, Compressed) else student
    compressed = bool(kept_channels(student)) or any(isinstance(layer, TuckerLayer) for layer in student.modules())
    if norm is None:
        norm = "frozen" if compressed and not lacks_statistics(student) else "batch"
    layers = None if feature_distillation_layers is None else list(feature_distillation_layers)
    settings = read_arguments(
        DistillationSettings, "student", samples=len(data), epochs=epochs, batch_size=batch_size,
        lr_scheduler=lr_scheduler, temperature=temperature, norm=norm, dropout=dropout, reconstruct=reconstruct,
        feature_distillation={"weight": feature_distillation, "layers": layers}, shuffle=shuffle,
        resample_each_epoch=resample_each_epoch, compile=compile, cuda_graphs=cuda_graphs, renamed={
            "feature_distillation.weight": "feature_distillation",
            "feature_distillation.layers": "feature_distillation_layers",
        },
    )  # fmt: skip
    fit = QuietFit(find_device(device), precision, logger, callbacks)
    optimizer = partial(torch.optim.Adam) if lr == "auto" else adam(lr)
    warn_of_hooks(student)
    x, logits = data.tensors
    taught = answers_of(data.teacher)
    same = compressed and type(student) is type(data.teacher) and outputs == "auto" and output_key is None
    classifier = as_classifier(
        student, data.input_shape, taught if same and taught is not None else outputs, output_key, "student"
    )
    classes = count_classes(classifier, data.input_shape, "student")
    if classes != logits.shape[1]:
        raise ValueError(f"Expected a student of the teacher's {logits.shape[1]} classes, but got {classes}.")
    check_student(classifier, data.teacher, settings, data.input_shape)
    console = make_console(quiet=not progress)
    with torch.inference_mode(mode=False):
        module_data = SyntheticDataModule(
            data.source, data.teacher, samples=len(data), batch_size=batch_size, shuffle=shuffle,
            resample_each_epoch=resample_each_epoch, device=fit.device, storage=StorageLimits(data.memory),
        )  # fmt: skip
        module_data.use({"train": (_trainable(x), _trainable(logits))})
        network = copy_network(classifier)
        if unfreeze_frozen(network):
            warnings.warn(
                "All weights of the student are frozen. All weights of its copy are trained. To keep some weights, "
                "freeze only these.",
                stacklevel=2,
            )
        data_of_seeds = [copy.copy(module_data) for _ in seeds]
        for own, value in zip(data_of_seeds, seeds, strict=True):
            own.seed = value
        networks = [network, *(copy_network(network) for _ in seeds[1:])]
        if _trains_together(parallel, network, data_of_seeds, settings, lr):
            bar = StageProgress(f"{len(seeds)} students", console)
            networks = fit_students(networks, data_of_seeds, settings, optimizer, fit, bar)
        else:
            for own, untrained in zip(data_of_seeds, networks, strict=True):
                label = None if isinstance(seed, Integral) else f"seed_{own.seed}"
                bar = StageProgress("student" if label is None else f"student {label}", console)
                fit_student(untrained, own, settings, optimizer, fit, bar, label=label, find_lr=lr == "auto")
    trained = [network if classifier is student else restore_answers(network) for network in networks]
    return trained[0] if isinstance(seed, Integral) else trained


def _to_seeds(seed: int | Sequence[int]) -> list[int]:
    seeds = [seed] if isinstance(seed, Integral) else list(seed) if isinstance(seed, Sequence) else []
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(value, Integral) for value in seeds):
        raise ValueError(
            f"Expected `seed` to be a whole number, or a sequence of different ones for a student each, but got "
            f"{seed!r}."
        )
    return [int(value) for value in seeds]


def _trains_together(
    parallel: Parallel,
    network: nn.Module,
    data: Sequence[SyntheticDataModule],
    settings: DistillationSettings,
    lr: float | Literal["auto"],
) -> bool:
    """Return True if students of several seeds are to be trained as one batch of networks.

    Raises:
        ValueError: If ``parallel="vmap"`` is set and that is impossible.
    """
    if not should_vectorize(parallel, len(data), data[0].device, data[0].splits["train"][0].shape[1:]):
        return False
    if lr == "auto":
        obstacle: str | None = "lr='auto', which differs from student to student"
    else:
        obstacle = stacking_obstacle(network, data[0], settings, adam(lr))
    return can_vectorize(parallel, obstacle, "a student and settings")
