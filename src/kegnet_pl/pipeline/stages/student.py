"""The students: one a source of synthetic data."""

import json
from pathlib import Path

from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.losses import DistillationLoss
from kegnet_pl.networks import adapt_norm, lacks_statistics, match_layers, prefer_channels_last
from kegnet_pl.networks.batch_norm import ADAPTING_SAMPLES, norm_layers
from kegnet_pl.networks.validation import check_trainable
from kegnet_pl.pipeline.context import Config, RunContext, build, code_of, data_settings, schedule_of, without
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.reporting.wandb import histogram
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.sources import GeneratorSource, NoiseSource, SyntheticSource
from kegnet_pl.training import FeatureDistillation, StudentModule
from kegnet_pl.training.progress import StageProgress


def student_stage(
    context: RunContext, method: str, teacher: tuple[Stage, nn.Module], initial: Stage, generators: Stage | None
) -> Stage:
    """Train the compressed network on synthetic data: from generators, or noise for the baselines."""
    config = settings_of(context.config["student"], method)
    settings: Config = {
        "student": _deciding(config, method),
        "source": method,
        **code_of(config["optimizer"]),
        "input_shape": context.input_shape,
        **context.trained(),
    }
    real = config["selection"] == "real"
    if real and context.data is not None:
        settings["data"] = data_settings(context.data, context.config["data"], "val")
    title = f"student ({method})"

    def make(folder: Path, costs: StageCosts) -> Config:
        seed_everything(derive_seed(context.seed, "student") % 2**32, verbose=False)
        data = SyntheticDataModule(
            _source(context, method, generators),
            teacher[1],
            samples=config["samples"],
            validation_samples=config["validation_samples"] if config["selection"] == "synthetic" else 0,
            real_validation=context.data.part("val") if real and context.data is not None else None,
            batch_size=config["batch_size"],
            shuffle=config["shuffle"],
            resample_each_epoch=config["resample_each_epoch"],
            seed=context.seed,
            device=context.device,
        )
        network = prefer_channels_last(load_network(initial.folder), context.input_shape)
        if config["norm"] == "adapt":
            data.setup()
            adapt_norm(network.to(context.device), data.teacher.network, data.subset(ADAPTING_SAMPLES))
        module = StudentModule(
            network,
            DistillationLoss(config["temperature"]),
            build(config["optimizer"]),
            lr_scheduler=config["lr_scheduler"],
            norm="frozen" if config["norm"] == "frozen" else "batch",
            dropout=config["dropout"],
            feature_distillation=_hints(config["feature_distillation"], data.teacher.network),
            seed=context.seed,
            compile=config["compile"],
            cuda_graphs=config["cuda_graphs"],
        )
        try:
            with StageProgress(title, context.console) as progress:
                metrics = context.training.fit(
                    module,
                    data,
                    schedule_of(config, select_best=config["selection"] != "last"),
                    folder,
                    stage="student",
                    names=[method],
                    costs=costs,
                    work="student_training",
                    callbacks=[progress],
                )
        finally:
            costs.seconds["student_training"] -= data.seconds_between_steps
            costs.seconds["drawing"] += data.seconds["draw"]
            costs.seconds["labelling"] += data.seconds["label"]
            costs.samples_made += data.made
            costs.teacher_forwards += data.made + module.teacher_forwards
        if rank() == 0:
            recipe = json.loads((initial.folder / "network.json").read_text())
            save_network(network, folder, "network", recipe["network"], recipe["ranks"])
        entropies = data.label_entropies()
        context.training.loggers.show("student", folder, lambda: {"labels/entropies": histogram(entropies)})
        return metrics | {"label_entropy": float(entropies.mean())}

    parents = [teacher[0], initial, *([generators] if generators is not None else [])]
    return context.get_or_build("student", settings, parents, make, title=title, collective=True)


def check_student(context: RunContext, teacher: nn.Module, initial: Stage) -> None:
    """See that the student can be trained, and that the layers are there that generators or students shall learn from.

    Raises:
        ConfigError: If the student returns something else than logits in training, has no statistics of the teacher
            to keep or not its layers, or the teacher has no batch norm.
    """
    student = load_network(initial.folder)
    try:
        check_trainable(student, context.input_shape)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    config, statistics = context.config["student"], context.config["generator"]["objective"].get("statistics", {})
    feature_distillation = bool(config["feature_distillation"]["weight"])
    if config["norm"] == "frozen" and lacks_statistics(student):
        raise ConfigError(
            f"Expected student.norm=batch, but got frozen: {type(student).__name__} is trained from scratch, and its "
            f"batch norm has no statistics to keep. Set student.norm=batch."
        )
    wants = {
        "student.norm=batch": config["norm"] == "adapt",
        "student.feature_distillation.weight=0": feature_distillation
        and config["feature_distillation"]["layers"] is None,
        "generator.objective.statistics.weight=0": bool(statistics.get("weight"))
        and "kegnet" in context.config["sources"],
    }
    asked = [name for name, wanted in wants.items() if wanted]
    if asked and not norm_layers(teacher):
        raise ConfigError(
            f"Expected a teacher with batch norm beside {', '.join(name.split('=')[0] for name in asked)}, but "
            f"{type(teacher).__name__} has none. Set {' '.join(asked)}. Schedules without: for images "
            f"schedule=mnist_lenet recipe=fast, for rows of features schedule=table_mlp recipe=fast."
        )
    needed = list(norm_layers(teacher)) if config["norm"] == "adapt" else []
    needed += match_layers(teacher, config["feature_distillation"]["layers"]) if feature_distillation else []
    if not needed:
        return
    there = {name for name, _ in student.named_modules()}
    missing = dict.fromkeys(name for name in needed if name not in there)
    if missing:
        raise ConfigError(
            f"Expected a student with the teacher's layers beside student.norm=adapt or student.feature_distillation.weight, but "
            f"{type(student).__name__} has no {', '.join(missing)}. Set student.norm=batch student.feature_distillation.weight=0."
        )


def settings_of(config: Config, method: str) -> Config:
    """Return the settings of ``student`` for a method: the noise baselines may have a budget of their own."""
    own = config["baselines"] if method != "kegnet" else {}
    optimizer = config["optimizer"] | ({"lr": own["lr"]} if own else {})
    return without(config, "baselines") | without(own, "lr") | {"optimizer": optimizer}


def _deciding(config: Config, method: str) -> Config:
    """Return those of a student's settings that its result depends on."""
    idle = ["network", "cuda_graphs"]
    if method != "kegnet":
        idle += ["sampling_norm", "noise_std"]
    if config["selection"] != "synthetic":
        idle.append("validation_samples")
    if not config["feature_distillation"]["weight"]:
        idle.append("feature_distillation")
    return without(config, *idle)


def _hints(config: Config, teacher: nn.Module) -> FeatureDistillation | None:
    if not config["weight"]:
        return None
    return FeatureDistillation(teacher, match_layers(teacher, config["layers"]), config["weight"])


def _source(context: RunContext, method: str, generators: Stage | None) -> SyntheticSource:
    if generators is None:
        return NoiseSource("uniform" if method == "uniform" else "normal", context.input_shape)
    config, student = context.config["generator"], context.config["student"]
    networks = [load_network(generators.folder, f"generator_{index}") for index in range(config["count"])]
    norm = student["sampling_norm"]
    chunk = config["batch_size"] if norm == "batch" else None
    return GeneratorSource(networks, context.device, chunk, norm, student["noise_std"])
