"""The stages: what each computes, from what, and what it leaves in the store."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from pytorch_lightning import seed_everything
from rich.console import Console
from torch import Tensor, nn

from kegnet_pl.artefacts import load_network, save_network
from kegnet_pl.compression import CompressionPlan, Rule, measure_cost
from kegnet_pl.data import GeneratorSource, NoiseSource, RealDataModule, SyntheticDataModule, SyntheticSource
from kegnet_pl.errors import ConfigError
from kegnet_pl.evaluation import digest, measure_accuracy
from kegnet_pl.losses import DistillationLoss, GeneratorObjective
from kegnet_pl.modules import GeneratorModule, StudentModule, TeacherModule
from kegnet_pl.progress import StageProgress
from kegnet_pl.ranks import rank
from kegnet_pl.reporting import draw_sample_sheet
from kegnet_pl.seeds import derive_seed
from kegnet_pl.store import Stage, Store
from kegnet_pl.training import Schedule, Training
from kegnet_pl.weights import load_weights

Config = dict[str, Any]

_SHEET_ROWS = 8
_CONFIDENCE_SAMPLES = 100


@dataclass(frozen=True)
class Workshop:
    """What all stages work with.

    Attributes:
        config: The resolved configuration, plain.
        store: Finished stages.
        training: Runs Lightning.
        console: Where progress is shown.
        device: Where drawing and evaluation compute.
        data: Real data, None where there is none.
    """

    config: Config
    store: Store
    training: Training
    console: Console
    device: torch.device
    data: RealDataModule | None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.config["data"]["input_shape"])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.config["data"]["classes"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    def trained(self) -> Config:
        """Return the settings that change the result of anything trained."""
        trainer = self.config["trainer"]
        return {
            "seed": self.seed,
            "precision": trainer["precision"],
            "processes": trainer["devices"] * trainer["num_nodes"],
        }

    def tell(self, name: str, stage: Stage) -> Stage:
        """Show that a stage was there already."""
        if stage.found:
            self.console.print(f"{name}: found ({stage.fingerprint}), {stage.seconds:.1f} s when it was made")
        return stage


def _without(config: Mapping[str, Any], *keys: str) -> Config:
    return {key: value for key, value in config.items() if key not in keys}


def _schedule(config: Mapping[str, Any], select_best: bool) -> Schedule:
    return Schedule(config["epochs"], select_best, config["patience"], config["min_epochs"])


def build(specification: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a ``_target_`` of the configuration from plain values."""
    return instantiate(dict(specification), **arguments, _convert_="all")


def check_network(network: nn.Module, name: str, input_shape: tuple[int, ...], classes: int) -> None:
    """Pass a blank batch through a network.

    Raises:
        ConfigError: If it does not take such samples, or does not return logits of so many classes.
    """
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, *input_shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"Expected the {name} {type(network).__name__} to take samples of shape {input_shape}, but it failed: "
            f"{str(error).splitlines()[0]} Choose data and network that fit: data=..., {name}=..., data.input_shape."
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"Expected the {name} {type(network).__name__} to return logits of shape (2, {classes}) for 2 samples, but "
            f"got {came}. Set data.classes to the number of its classes; a network must return logits alone."
        )


# --- teacher ---------------------------------------------------------------------------------------------------------


def teacher_stage(shop: Workshop) -> tuple[Stage, nn.Module]:
    """Train the teacher on real data, or take it from the user's file."""
    config = shop.config["teacher"]
    weights = config["weights"]
    stage = _train_teacher(shop) if weights is None else _import_teacher(shop, Path(weights))
    return shop.tell("teacher", stage), load_network(stage.folder)


def _train_teacher(shop: Workshop) -> Stage:
    config, data = shop.config["teacher"], shop.config["data"]
    settings = {
        "teacher": _without(config, "name", "weights"),
        "data": _without(data, "root", "download"),
        **shop.trained(),
    }

    def make(folder: Path) -> Config:
        assert shop.data is not None  # schema.check has seen to it
        seed_everything(derive_seed(shop.seed, "teacher") % 2**32, verbose=False)
        network = build(config["network"])
        check_network(network, "teacher", shop.input_shape, shop.classes)
        shop.data.setup()
        module = TeacherModule(network, build(config["optimizer"]), seed=shop.seed)
        with StageProgress("teacher", shop.console) as progress:
            metrics = shop.training.fit(
                module,
                shop.data,
                _schedule(config, select_best=config["patience"] is not None),
                folder,
                stage="teacher",
                name="teacher",
                callbacks=[progress],
            )
        if rank() == 0:
            save_network(network, folder, "network", config["network"])
        return metrics

    return shop.store.get("teacher", settings, [], make, collective=True)


def _import_teacher(shop: Workshop, weights: Path) -> Stage:
    config = shop.config["teacher"]
    network = build(config["network"])
    check_network(network, "teacher", shop.input_shape, shop.classes)
    load_weights(network, weights)
    settings = {"network": config["network"], "weights": hashlib.sha256(weights.read_bytes()).hexdigest()}

    def make(folder: Path) -> Config:
        save_network(network, folder, "network", config["network"])
        shop.console.print(f"teacher: read from {weights}")
        return {}

    return shop.store.get("teacher", settings, [], make)


# --- generators ------------------------------------------------------------------------------------------------------


def generators_stage(shop: Workshop, teacher: Stage, network: nn.Module) -> tuple[Stage, list[nn.Module]]:
    """Train the generators, one after another, against the frozen teacher."""
    config = shop.config["generator"]
    settings = {"generator": config, "input_shape": shop.input_shape, "classes": shop.classes, **shop.trained()}

    def make(folder: Path) -> Config:
        metrics: dict[str, dict[str, float]] = {}
        with StageProgress("generators", shop.console, fits=config["count"]) as progress:
            for index in range(config["count"]):
                progress.next_fit(index)
                finished = folder / f"generator_{index}.metrics.json"
                if not finished.exists():
                    metrics[str(index)] = _train_generator(shop, network, folder, index, progress)
                    if rank() == 0:
                        finished.write_text(json.dumps(metrics[str(index)]))
                else:
                    metrics[str(index)] = json.loads(finished.read_text())
        if rank() == 0:
            confidence = _draw_sheet(shop, folder, network)
            return {"generators": metrics, "confidence": confidence}
        return {}

    stage = shop.store.get("generators", settings, [teacher], make, collective=True)
    shop.tell("generators", stage)
    return stage, [load_network(stage.folder, f"generator_{index}") for index in range(config["count"])]


def _train_generator(
    shop: Workshop, teacher: nn.Module, folder: Path, index: int, progress: StageProgress
) -> dict[str, float]:
    config = shop.config["generator"]
    seed_everything(derive_seed(shop.seed, "generator", index) % 2**32, verbose=False)
    objective = GeneratorObjective(
        {name: build(term["term"]) for name, term in config["objective"].items()},
        {name: term["weight"] for name, term in config["objective"].items()},
    )
    module = GeneratorModule(
        build(config["network"]),
        build(config["decoder"]),
        teacher,
        objective,
        build(config["optimizer"]),
        batch_size=config["batch_size"],
        steps_per_epoch=config["steps_per_epoch"],
        teacher_norm=config["teacher_norm"],
        seed=shop.seed,
        index=index,
    )
    metrics = shop.training.fit(
        module,
        None,
        Schedule(config["epochs"]),
        folder,
        stage="generators",
        name=f"generator_{index}",
        callbacks=[progress],
    )
    if rank() == 0:
        save_network(module.decoder, folder, f"decoder_{index}", config["decoder"])
        save_network(module.generator, folder, f"generator_{index}", config["network"])
    return metrics


def _draw_sheet(shop: Workshop, folder: Path, teacher: nn.Module) -> list[float]:
    """Write ``samples.png``; return the teacher's mean probability of the intended class, for every class."""
    config = shop.config["generator"]
    networks = [load_network(folder, f"generator_{index}") for index in range(config["count"])]
    chance = torch.Generator().manual_seed(derive_seed(shop.seed, "sheet"))
    z = torch.randn(_CONFIDENCE_SAMPLES, config["noise_dim"], generator=chance)
    samples, confidence = [], []
    with torch.no_grad():
        for label in range(shop.classes):
            y = torch.zeros(len(z), shop.classes)
            y[:, label] = 1
            drawn = [network(z, y) for network in networks]
            confidence.append(float(torch.cat([teacher(x).softmax(dim=1)[:, label] for x in drawn]).mean()))
            # Generators take turns, so that the sheet shows all of them.
            samples.append(torch.stack([drawn[row % len(drawn)][row] for row in range(_SHEET_ROWS)]))
    title = (
        f"Synthetic {shop.config['data']['name']}, {config['count']} generators, seed {shop.seed}.\n"
        f"Class, and the teacher's mean confidence in it:"
    )
    draw_sample_sheet(samples, folder / "samples.png", title, confidence)
    return confidence


# --- compression -----------------------------------------------------------------------------------------------------


def compression_stage(shop: Workshop, teacher: Stage, network: nn.Module) -> tuple[Stage, nn.Module]:
    """Compress the teacher, or build another network: the student before any training."""
    other = shop.config["student"]["network"]
    plan_config = shop.config["compression"]
    if other is not None:
        settings: Config = {"network": other, "seed": shop.seed}
    else:
        settings = {"compression": _without(plan_config, "name"), "input_shape": shop.input_shape}

    def make(folder: Path) -> Config:
        if other is not None:
            seed_everything(derive_seed(shop.seed, "student") % 2**32, verbose=False)
            student = build(other)
            check_network(student, "student", shop.input_shape, shop.classes)
            save_network(student, folder, "network", other)
            return _cost(student, shop.input_shape)
        plan = CompressionPlan(
            [Rule(rule["layers"], rule["rank"]) for rule in plan_config["rules"]],
            plan_config["target"],
            plan_config["when_larger"],
        )
        compressed = plan.apply(network, shop.input_shape)
        recipe = shop.config["teacher"]["network"]
        save_network(compressed.network, folder, "network", recipe, compressed.ledger.ranks)
        (folder / "ledger.json").write_text(json.dumps(compressed.ledger.to_dict(), indent=2))
        return _cost(compressed.network, shop.input_shape)

    stage = shop.store.get("compression", settings, [teacher], make)
    shop.tell("compression", stage)
    return stage, load_network(stage.folder)


def _cost(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    cost = measure_cost(network, input_shape)
    return {"parameters": cost.parameters, "macs": cost.macs}


# --- students --------------------------------------------------------------------------------------------------------


def student_stage(
    shop: Workshop, method: str, teacher: tuple[Stage, nn.Module], initial: Stage, generators: Stage | None
) -> Stage:
    """Train the compressed network on synthetic data: from generators, or noise for the baselines."""
    config = shop.config["student"]
    settings: Config = {
        "student": _without(config, "network"),
        "source": method,
        "input_shape": shop.input_shape,
        **shop.trained(),
    }
    real = config["selection"] == "real"
    if real:
        settings["data"] = _without(shop.config["data"], "root", "download")
    title = f"student ({method})"

    def make(folder: Path) -> Config:
        seed_everything(derive_seed(shop.seed, "student", METHOD_INDEX[method]) % 2**32, verbose=False)
        if real and shop.data is not None:
            shop.data.setup()
        data = SyntheticDataModule(
            _source(shop, method, generators),
            teacher[1],
            samples=config["samples"],
            validation_samples=config["validation_samples"] if config["selection"] == "synthetic" else 0,
            real_validation=shop.data.splits["val"] if real and shop.data is not None else None,
            batch_size=config["batch_size"],
            shuffle=config["shuffle"],
            seed=shop.seed,
            device=shop.device,
        )
        network = load_network(initial.folder)
        module = StudentModule(
            network, DistillationLoss(config["temperature"]), build(config["optimizer"]), seed=shop.seed
        )
        with StageProgress(title, shop.console) as progress:
            metrics = shop.training.fit(
                module,
                data,
                _schedule(config, select_best=config["selection"] != "last"),
                folder,
                stage="student",
                name=method,
                callbacks=[progress],
            )
        if rank() == 0:
            recipe = json.loads((initial.folder / "network.json").read_text())
            save_network(network, folder, "network", recipe["network"], recipe["ranks"])
        return metrics | {f"seconds_{name}": round(value, 3) for name, value in data.seconds.items()}

    parents = [teacher[0], initial, *([generators] if generators is not None else [])]
    return shop.tell(title, shop.store.get("student", settings, parents, make, collective=True))


METHOD_INDEX = {"uniform": 0, "normal": 1, "kegnet": 2}


def _source(shop: Workshop, method: str, generators: Stage | None) -> SyntheticSource:
    if generators is None:
        return NoiseSource("uniform" if method == "uniform" else "normal", shop.input_shape)
    count = shop.config["generator"]["count"]
    return GeneratorSource([load_network(generators.folder, f"generator_{i}") for i in range(count)], shop.device)


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluation_stage(shop: Workshop, stage: Stage, name: str) -> Stage | None:
    """Measure a finished network on the real test data; None where there is none."""
    data = shop.data
    if data is None:
        return None
    data.setup()
    test = data.splits["test"]
    settings = {"test_data": _test_digest(data)}

    def make(folder: Path) -> Config:
        value = measure_accuracy(load_network(stage.folder), test, shop.device)
        for logger in shop.training.make_loggers("evaluation", name, folder):
            logger.log_metrics({"test/accuracy": value}, step=0)
            logger.save()
        shop.training.finish_loggers()
        return {"test/accuracy": value, "test_set": data.test_set, "samples": len(test)}

    return shop.store.get("evaluation", settings, [stage], make)


@functools.cache
def _test_digest(data: RealDataModule) -> str:
    return digest(data.splits["test"])
