"""The stage of quantisation: a finished network as an ONNX file with int8 weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.export import import_onnx
from kegnet_pl.api.quantization import draw_samples, quantize
from kegnet_pl.compression import measure_agreement
from kegnet_pl.pipeline.context import QUANTIZED, RunContext
from kegnet_pl.pipeline.objects import code_of, own_code, source_definitions
from kegnet_pl.pipeline.outputs import Network
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.errors import ConfigError
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import SourceInfo, build_source, describe_mixture


def describe_quantization_source(settings: RunSettings, *, generators: bool) -> SourceInfo | None:
    """Return the description of the calibration samples, None where nothing is quantised.

    Args:
        settings: Settings of the run.
        generators: True if the run trains generators.

    Raises:
        ConfigError: If a source needs generators or real data that the run does not have.
        UserError: If the packages of ONNX are missing.
    """
    wanted = settings.quantization
    if wanted.format is None:
        return None
    import_onnx()
    info = describe_mixture(wanted.source, settings.source)
    if info.needs_generators and not generators:
        raise ConfigError(
            f"Expected `quantization.source` to be a source without generators, since no source in `sources` trains "
            f"them, but got {info.name}. Use quantization.source=procedural, or add kegnet to `sources`."
        )
    if info.needs_data and settings.data.target is None:
        raise ConfigError(
            f"Expected real training data for quantization.source={info.name}, but got data=none. Use "
            f"quantization.source=procedural."
        )
    return info


def quantization_stage(
    context: RunContext, stage: Stage, source: SourceInfo, teacher: Stage, generators: Stage | None
) -> Stage:
    """Quantise the network of a finished stage, and measure the agreement of both on held-out samples of the source."""
    wanted = context.settings.quantization
    definitions = source_definitions(context.settings, source.shares)
    settings = {
        "format": wanted.format,
        "activations": wanted.activations,
        "source": {"shares": source.shares, "definitions": definitions, **code_of(definitions)},
        "samples": wanted.samples,
        "seed": context.seed,
        "input_shape": context.input_shape,
        **({"data": context.data_fingerprint("train")} if source.needs_data else {}),
    }

    def make(folder: Path, costs: StageCosts) -> dict[str, Any]:
        count = context.settings.generator.count if generators is not None else 0
        with costs.measure("compression"):
            drawn = build_source(
                source.shares, definitions, input_shape=context.input_shape, teacher=context.network(teacher),
                generators=[load_network(generators.folder, f"generator_{index}", trust=own_code(context.settings))
                            for index in range(count)]
                if generators is not None else None,
                inputs=context.data.part("train").x if source.needs_data and context.data is not None else None,
            )  # fmt: skip
            samples, held_out = draw_samples(drawn, wanted.samples, context.seed)
            network = context.network(stage)
            calibration = samples if wanted.activations == "int8" else None
            quantized = quantize(network, folder / QUANTIZED, context.input_shape, calibration)
            agreement = measure_agreement(network, quantized, held_out)
        costs.samples_made += 0 if source.needs_data else len(samples) + len(held_out)
        return {"size": quantized.size, "agreement": agreement}

    parents = [stage, *([generators] if generators is not None else [])]
    return context.get_or_build("quantization", settings, parents, make, title=None)


def quantize_networks(
    context: RunContext, networks: Sequence[Network], source: SourceInfo | None, generators: Stage | None
) -> list[Network]:
    """Quantise the teacher, which comes first, and the students; or the compressed teacher if there are none.

    Args:
        context: Context of the run.
        networks: Networks of the run, in float32.
        source: Description of the calibration samples; None if nothing is quantised.
        generators: Stage of the generators, if the run trains them.
    """
    if source is None:
        return []
    teacher, initial, *students = networks
    parent = generators if source.needs_generators else None
    quantized = []
    for network in (teacher, *(students or [initial])):
        stage = quantization_stage(context, network.stages[-1], source, teacher.stages[0], parent)
        parents = [*network.stages, *([parent] if parent is not None else [])]
        stages = [*{one.fingerprint: one for one in parents}.values(), stage]
        calibration = source if context.settings.quantization.activations == "int8" else None
        quantized.append(
            Network(
                f"{network.method} int8", stages, network.source, _describe(context, stage, source),
                calibration=calibration,
            )
        )  # fmt: skip
    return quantized


def _describe(context: RunContext, stage: Stage, source: SourceInfo) -> dict[str, Any]:
    """Return the description of a quantised network, for its row of results."""
    wanted = context.settings.quantization
    calibrated = wanted.activations == "int8"
    return {
        "format": wanted.format,
        "activations": wanted.activations,
        "source": source.to_dict() if calibrated else None,
        "samples": wanted.samples if calibrated else None,
        "agreement": stage.metrics["agreement"],
        "runtime": f"ONNX Runtime {import_onnx().__version__}",
    }
