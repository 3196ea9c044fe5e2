"""The generators: trained one after another against the frozen teacher."""

import json
from pathlib import Path

import torch
from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.artefacts import load_network, save_network
from kegnet_pl.errors import ConfigError
from kegnet_pl.losses import GeneratorObjective
from kegnet_pl.modules import GeneratorModule
from kegnet_pl.progress import StageProgress
from kegnet_pl.ranks import rank
from kegnet_pl.reporting import draw_sample_sheet
from kegnet_pl.seeds import derive_seed
from kegnet_pl.stages.workshop import Config, Workshop, build
from kegnet_pl.store import Stage
from kegnet_pl.training import Schedule

_SHEET_ROWS = 8
_CONFIDENCE_SAMPLES = 100


def generators_stage(shop: Workshop, teacher: Stage, network: nn.Module) -> Stage:
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

    return shop.tell("generators", shop.store.get("generators", settings, [teacher], make, collective=True))


def check_generator(shop: Workshop) -> None:
    """Pass a batch through a new generator and its decoder.

    Raises:
        ConfigError: If the samples have another shape than the data, or the decoder does not take them.
    """
    config = shop.config["generator"]
    state = torch.random.get_rng_state()
    z, y = torch.zeros(2, config["noise_dim"]), torch.eye(shop.classes)[:2]
    try:
        x = build(config["network"])(z, y)
        decoded = build(config["decoder"])(x)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"Expected generator.network and generator.decoder to take {config['noise_dim']} noise dimensions, "
            f"{shop.classes} classes and samples of shape {shop.input_shape}, but: {str(error).splitlines()[0]}. "
            f"Choose generator=image for images, generator=dense for tables."
        ) from error
    torch.random.set_rng_state(state)
    if tuple(x.shape[1:]) != shop.input_shape or decoded.shape != z.shape:
        raise ConfigError(
            f"Expected generator.network to make samples of shape {shop.input_shape} and generator.decoder to read "
            f"{config['noise_dim']} noise dimensions, but got {tuple(x.shape[1:])} and {tuple(decoded.shape[1:])}. "
            f"Choose generator=image for 32x32 images, generator=dense for tables."
        )


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
