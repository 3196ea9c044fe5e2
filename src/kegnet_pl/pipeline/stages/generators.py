"""The generators: trained against the frozen teacher, together or one after another."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pytorch_lightning import seed_everything
from torch import nn

from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.losses import GeneratorObjective
from kegnet_pl.networks import StackedModule
from kegnet_pl.networks.execution import teacher_for
from kegnet_pl.networks.validation import check_generator as check_networks
from kegnet_pl.pipeline.context import Config, RunContext, build, code_of, without
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.pipeline.trainer import Schedule
from kegnet_pl.reporting import draw_sample_sheet
from kegnet_pl.reporting.pixels import write_grid
from kegnet_pl.runtime.atomic_files import write_whole
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.runtime.seeds import derive_seed, stream
from kegnet_pl.training import GeneratorModule
from kegnet_pl.training.progress import StageProgress
from kegnet_pl.training.sample_monitor import SampleMonitor
from kegnet_pl.training.vectorization import should_vectorize, vectorization_error

_SHEET_ROWS = 8
_CONFIDENCE_SAMPLES = 100
_WALKS = 5
_WALK_STEPS = 11

SHEETS = "sheets"
"""Folder of the sheets that were drawn while generators trained."""


def generators_stage(context: RunContext, teacher: Stage, network: nn.Module) -> Stage:
    """Train the generators against the frozen teacher, together or one after another."""
    config = context.config["generator"]
    together = _together(context, network)
    fits = [list(range(config["count"]))] if together else [[index] for index in range(config["count"])]
    objective = {name: term for name, term in config["objective"].items() if term["weight"]}
    settings = {
        # `network` holds what the first two say; graphs are of the same kernels.
        "generator": without(config, "upsampling", "output_norm", "cuda_graphs")
        | {"training": "vmap" if together else "sequential", "objective": objective},
        "input_shape": context.input_shape,
        "classes": context.classes,
        **without(context.trained(), "seed"),
        **code_of(config),
    }

    def make(folder: Path, costs: StageCosts) -> Config:
        frozen = teacher_for(network, context.input_shape, context.config["trainer"]["precision"])
        with StageProgress("generators", context.console, fits=len(fits)) as progress:
            for number, indices in enumerate(fits):
                progress.next_fit(number)
                if not _metrics_file(folder, indices[-1]).exists():
                    _train_generators(context, frozen, folder, indices, progress, costs)
        if rank() != 0:
            return {}
        metrics = {str(i): json.loads(_metrics_file(folder, i).read_text()) for i in range(config["count"])}
        networks = [load_network(folder, f"generator_{index}") for index in range(config["count"])]
        confidence = _draw_sheet(context, folder, network, networks, costs)
        return {
            "generators": metrics,
            "confidence": confidence,
            "walk": _draw_walk(context, folder, network, networks[0], costs),
        }

    return context.get_or_build("generators", settings, [teacher], make, title="generators", collective=True)


def _together(context: RunContext, teacher: nn.Module) -> bool:
    """Decide whether generators are trained together.

    Raises:
        ConfigError: If that is asked for and cannot be.
    """
    config, trainer = context.config["generator"], context.config["trainer"]
    if not should_vectorize(config["training"], config["count"], context.device, context.input_shape):
        return False

    def two() -> GeneratorModule:
        generators, decoders = ([build(config[part]) for _ in range(2)] for part in ("network", "decoder"))
        return _make_module(context, teacher, generators, decoders, 0)

    obstacle = vectorization_error(two, trainer.get("gradient_clip_val"), trainer.get("gradient_clip_algorithm"))
    if obstacle is None:
        return True
    if config["training"] == "vmap":
        raise ConfigError(
            f"Expected generators, teacher and losses that torch can vectorise beside generator.parallel=vmap, "
            f"but: {obstacle.rstrip('.')}. Set generator.parallel=sequential."
        )
    context.console.print(f"Generators are trained one by one, as they cannot be together: {obstacle}")
    return False


def _metrics_file(folder: Path, index: int) -> Path:
    """Return the file of a generator's last metrics; it is written last, when the generator is done."""
    return folder / f"generator_{index}.metrics.json"


def check_generator(context: RunContext) -> None:
    """See that a new generator and its decoder fit the data, and each other.

    Raises:
        ConfigError: As :func:`kegnet_pl.networks.validation.check_generator`; or if its noise is not as configured.
    """
    config = context.config["generator"]
    with torch.random.fork_rng(devices=[]):
        generator, decoder = build(config["network"]), build(config["decoder"])
    mine = getattr(generator, "noise_dim", config["noise_dim"])
    if mine != config["noise_dim"]:
        raise ConfigError(
            f"Expected a generator of {config['noise_dim']} noise dimensions, but {type(generator).__name__} has "
            f"{mine}. Set generator.noise_dim={mine}, which the decoder and the draws of noise go by, too."
        )
    try:
        check_networks(generator, decoder, context.input_shape, context.classes)
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
    context: RunContext, teacher: nn.Module, generators: Sequence[nn.Module], decoders: Sequence[nn.Module], index: int
) -> GeneratorModule:
    config, alone = context.config["generator"], len(generators) == 1
    return GeneratorModule(
        generators[0] if alone else StackedModule(generators),
        decoders[0] if alone else StackedModule(decoders),
        teacher,
        build_objective(config["objective"]),
        build(config["optimizer"]),
        lr_scheduler=config["lr_scheduler"],
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
    context: RunContext,
    teacher: nn.Module,
    folder: Path,
    indices: list[int],
    progress: StageProgress,
    costs: StageCosts,
) -> None:
    config = context.config["generator"]
    generators, decoders = [], []
    for index in indices:
        seed_everything(derive_seed(config["seed"], "generator", index) % 2**32, verbose=False)
        generators.append(build(config["network"]))
        decoders.append(build(config["decoder"]))
    module = _make_module(context, teacher, generators, decoders, indices[0])
    names = [f"generator_{index}" for index in indices]
    module.names = names if config["count"] > 1 else None
    watch = SampleMonitor(
        teacher, copy.deepcopy(generators[0]), names, folder / SHEETS, derive_seed(config["seed"], "sheet"), costs
    )
    last = context.training.fit(
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
    context: RunContext, folder: Path, teacher: nn.Module, networks: Sequence[nn.Module], costs: StageCosts
) -> list[float]:
    """Write ``samples.png``; return the teacher's mean probability of the intended class, for every class."""
    config = context.config["generator"]
    chance = torch.Generator().manual_seed(derive_seed(config["seed"], "sheet"))
    z = torch.randn(_CONFIDENCE_SAMPLES, config["noise_dim"], generator=chance)
    samples, confidence = [], []
    with torch.no_grad():
        for label in range(context.classes):
            y = torch.zeros(len(z), context.classes)
            y[:, label] = 1
            drawn = [network(z, y) for network in networks]
            confidence.append(float(torch.cat([teacher(x).softmax(dim=1)[:, label] for x in drawn]).mean()))
            # Generators take turns, so that the sheet shows all of them.
            samples.append(torch.stack([drawn[row % len(drawn)][row] for row in range(_SHEET_ROWS)]))
    title = (
        f"Synthetic {context.config['data']['name']}, {config['count']} generators, seed {config['seed']}.\n"
        f"Class, and the teacher's mean confidence in it:"
    )
    costs.samples_made += len(z) * context.classes * config["count"]
    costs.teacher_forwards += len(z) * context.classes * config["count"]
    draw_sample_sheet(samples, folder / "samples.png", title, confidence)
    return confidence


@torch.no_grad()
def _draw_walk(
    context: RunContext, folder: Path, teacher: nn.Module, network: nn.Module, costs: StageCosts
) -> list[Config]:
    """Write ``walk.png``: from one class to another at the same noise, a row a pair of classes.

    Returns:
        For each row the two classes, and the teacher's probabilities of them at every step.
    """
    z = torch.randn(
        1, context.config["generator"]["noise_dim"], generator=stream(context.config["generator"]["seed"], "walk")
    )
    rows, told = [], []
    for start in range(0, min(context.classes, 2 * _WALKS), 2):
        end = (start + 1) % context.classes
        share = torch.linspace(0, 1, _WALK_STEPS)
        y = torch.zeros(_WALK_STEPS, context.classes)
        y[:, start], y[:, end] = 1 - share, share
        x = network(z.expand(_WALK_STEPS, -1), y)
        answers = teacher(x).softmax(dim=1)
        rows.append(list(x))
        told.append({"from": start, "to": end, "p_from": answers[:, start].tolist(), "p_to": answers[:, end].tolist()})
    costs.samples_made += len(rows) * _WALK_STEPS
    costs.teacher_forwards += len(rows) * _WALK_STEPS
    write_grid(rows, folder / "walk.png")
    return told
