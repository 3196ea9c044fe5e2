"""The generators: trained against the frozen teacher, together or one after another."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.artefacts import load_network, save_network
from kegnet_pl.costs import Costs
from kegnet_pl.errors import ConfigError
from kegnet_pl.files import write_whole
from kegnet_pl.losses import GeneratorObjective
from kegnet_pl.modules import GeneratorModule
from kegnet_pl.modules.together import find_obstacle, wants_together
from kegnet_pl.networks import StackedModule, prefer_channels_last
from kegnet_pl.networks.answers import check_generator as check_networks
from kegnet_pl.progress import StageProgress
from kegnet_pl.ranks import rank
from kegnet_pl.reporting import draw_sample_sheet
from kegnet_pl.reporting.pixels import write_grid
from kegnet_pl.seeds import derive_seed, stream
from kegnet_pl.stages.workshop import Config, Workshop, build, code_of, without
from kegnet_pl.store import Stage
from kegnet_pl.training import Schedule
from kegnet_pl.watching import GeneratorWatch

_SHEET_ROWS = 8
_CONFIDENCE_SAMPLES = 100
_WALKS = 5
_WALK_STEPS = 11

SHEETS = "sheets"
"""Folder of the sheets that were drawn while generators trained."""


def generators_stage(shop: Workshop, teacher: Stage, network: nn.Module) -> Stage:
    """Train the generators against the frozen teacher, together or one after another."""
    config = shop.config["generator"]
    together = _together(shop, network)
    fits = [list(range(config["count"]))] if together else [[index] for index in range(config["count"])]
    objective = {name: term for name, term in config["objective"].items() if term["weight"]}
    settings = {
        # `network` holds what the first two say; graphs are of the same kernels.
        "generator": without(config, "upsampling", "adjust", "cuda_graphs")
        | {"training": "together" if together else "one_by_one", "objective": objective},
        "input_shape": shop.input_shape,
        "classes": shop.classes,
        **without(shop.trained(), "seed"),
        **code_of(config),
    }

    def make(folder: Path, costs: Costs) -> Config:
        frozen = teacher_for(network, shop.input_shape, shop.config["trainer"]["precision"])
        with StageProgress("generators", shop.console, fits=len(fits)) as progress:
            for number, indices in enumerate(fits):
                progress.next_fit(number)
                if not _metrics_file(folder, indices[-1]).exists():
                    _train_generators(shop, frozen, folder, indices, progress, costs)
        if rank() != 0:
            return {}
        metrics = {str(i): json.loads(_metrics_file(folder, i).read_text()) for i in range(config["count"])}
        networks = [load_network(folder, f"generator_{index}") for index in range(config["count"])]
        confidence = _draw_sheet(shop, folder, network, networks, costs)
        return {
            "generators": metrics,
            "confidence": confidence,
            "walk": _draw_walk(shop, folder, network, networks[0], costs),
        }

    return shop.obtain("generators", settings, [teacher], make, title="generators", collective=True)


def teacher_for(teacher: nn.Module, input_shape: Sequence[int], precision: str) -> nn.Module:
    """Return a copy of the teacher, in the layout of memory that its answers to generators are computed in.

    In float32 the layout stays: another one adds up in another order, and Adam makes steps of the last digit.
    """
    mine = copy.deepcopy(teacher)
    return mine if precision == "32-true" else prefer_channels_last(mine, input_shape)


def _together(shop: Workshop, teacher: nn.Module) -> bool:
    """Decide whether generators are trained together.

    Raises:
        ConfigError: If that is asked for and cannot be.
    """
    config, trainer = shop.config["generator"], shop.config["trainer"]
    if not wants_together(config["training"], config["count"], shop.device, shop.input_shape):
        return False

    def two() -> GeneratorModule:
        generators, decoders = ([build(config[part]) for _ in range(2)] for part in ("network", "decoder"))
        return _make_module(shop, teacher, generators, decoders, 0)

    obstacle = find_obstacle(two, trainer.get("gradient_clip_val"), trainer.get("gradient_clip_algorithm"))
    if obstacle is None:
        return True
    if config["training"] == "together":
        raise ConfigError(
            f"Expected generators, teacher and losses that torch can vectorise beside generator.training=together, "
            f"but: {obstacle.rstrip('.')}. Set generator.training=one_by_one."
        )
    shop.console.print(f"Generators are trained one by one, as they cannot be together: {obstacle}")
    return False


def _metrics_file(folder: Path, index: int) -> Path:
    """Return the file of a generator's last metrics; it is written last, when the generator is done."""
    return folder / f"generator_{index}.metrics.json"


def check_generator(shop: Workshop) -> None:
    """See that a new generator and its decoder fit the data, and each other.

    Raises:
        ConfigError: As :func:`kegnet_pl.networks.answers.check_generator`; or if its noise is not as configured.
    """
    config = shop.config["generator"]
    with torch.random.fork_rng(devices=[]):
        generator, decoder = build(config["network"]), build(config["decoder"])
    mine = getattr(generator, "noise_dim", config["noise_dim"])
    if mine != config["noise_dim"]:
        raise ConfigError(
            f"Expected a generator of {config['noise_dim']} noise dimensions, but {type(generator).__name__} has "
            f"{mine}. Set generator.noise_dim={mine}, which the decoder and the draws of noise go by, too."
        )
    try:
        check_networks(generator, decoder, shop.input_shape, shop.classes)
    except ValueError as error:
        raise ConfigError(
            f"{error} generator=image makes images (data.input_shape=[channels,height,width]), generator=dense rows of "
            f"features; generator=custom takes generator.network and generator.decoder of your own."
        ) from error


def build_objective(terms: Mapping[str, Config]) -> GeneratorObjective:
    """Return the weighted sum of losses that ``generator.objective`` describes."""
    return GeneratorObjective(
        {name: build(term["term"]) for name, term in terms.items()},
        {name: term["weight"] for name, term in terms.items()},
    )


def _make_module(
    shop: Workshop, teacher: nn.Module, generators: Sequence[nn.Module], decoders: Sequence[nn.Module], index: int
) -> GeneratorModule:
    config, alone = shop.config["generator"], len(generators) == 1
    return GeneratorModule(
        generators[0] if alone else StackedModule(generators),
        decoders[0] if alone else StackedModule(decoders),
        teacher,
        build_objective(config["objective"]),
        build(config["optimizer"]),
        lr_schedule=config["lr_schedule"],
        batch_size=config["batch_size"],
        steps_per_epoch=config["steps_per_epoch"],
        teacher_norm=config["teacher_norm"],
        teacher_dropout=config["teacher_dropout"],
        seed=config["seed"],
        index=index,
        compile=config["compile"],
        cuda_graphs=config["cuda_graphs"],
    )


def _train_generators(
    shop: Workshop, teacher: nn.Module, folder: Path, indices: list[int], progress: StageProgress, costs: Costs
) -> None:
    config = shop.config["generator"]
    generators, decoders = [], []
    for index in indices:
        seed_everything(derive_seed(config["seed"], "generator", index) % 2**32, verbose=False)
        generators.append(build(config["network"]))
        decoders.append(build(config["decoder"]))
    module = _make_module(shop, teacher, generators, decoders, indices[0])
    names = [f"generator_{index}" for index in indices]
    watch = GeneratorWatch(
        teacher, copy.deepcopy(generators[0]), names, folder / SHEETS, derive_seed(config["seed"], "sheet"), costs
    )
    last = shop.training.fit(
        module,
        None,
        Schedule(config["epochs"]),
        folder,
        stage="generators",
        names=names,
        costs=costs,
        work="generator_training",
        samples_per_step=config["batch_size"] * len(indices),
        callbacks=[progress, watch],
        prefixed=config["count"] > 1,
    )
    if rank() != 0:
        return
    for place, index in enumerate(indices):
        for stacked, single, name in (
            (module.generator, generators[place], "network"),
            (module.decoder, decoders[place], "decoder"),
        ):
            if isinstance(stacked, StackedModule):
                stacked.take(place, single)
            file = f"{'generator' if name == 'network' else name}_{index}"
            save_network(single, folder, file, config[name])
    for index, mine in zip(indices, module.means, strict=True):
        write_whole(_metrics_file(folder, index), json.dumps(mine | {"epochs": last["epochs"]}))


def _draw_sheet(
    shop: Workshop, folder: Path, teacher: nn.Module, networks: Sequence[nn.Module], costs: Costs
) -> list[float]:
    """Write ``samples.png``; return the teacher's mean probability of the intended class, for every class."""
    config = shop.config["generator"]
    chance = torch.Generator().manual_seed(derive_seed(config["seed"], "sheet"))
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
        f"Synthetic {shop.config['data']['name']}, {config['count']} generators, seed {config['seed']}.\n"
        f"Class, and the teacher's mean confidence in it:"
    )
    costs.samples_made += len(z) * shop.classes * config["count"]
    costs.teacher_forwards += len(z) * shop.classes * config["count"]
    draw_sample_sheet(samples, folder / "samples.png", title, confidence)
    return confidence


@torch.no_grad()
def _draw_walk(shop: Workshop, folder: Path, teacher: nn.Module, network: nn.Module, costs: Costs) -> list[Config]:
    """Write ``walk.png``: from one class to another at the same noise, a row a pair of classes.

    Returns:
        For each row the two classes, and the teacher's probabilities of them at every step.
    """
    z = torch.randn(
        1, shop.config["generator"]["noise_dim"], generator=stream(shop.config["generator"]["seed"], "walk")
    )
    rows, told = [], []
    for start in range(0, min(shop.classes, 2 * _WALKS), 2):
        end = (start + 1) % shop.classes
        share = torch.linspace(0, 1, _WALK_STEPS)
        y = torch.zeros(_WALK_STEPS, shop.classes)
        y[:, start], y[:, end] = 1 - share, share
        x = network(z.expand(_WALK_STEPS, -1), y)
        answers = teacher(x).softmax(dim=1)
        rows.append(list(x))
        told.append({"from": start, "to": end, "p_from": answers[:, start].tolist(), "p_to": answers[:, end].tolist()})
    costs.samples_made += len(rows) * _WALK_STEPS
    costs.teacher_forwards += len(rows) * _WALK_STEPS
    write_grid(rows, folder / "walk.png")
    return told
