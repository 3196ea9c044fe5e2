"""Search for sources by name; their descriptions and their construction."""

import functools
import importlib
import importlib.metadata
import importlib.resources
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
import yaml
from torch import Tensor, nn

from kegnet_pl.networks import TeacherNorm
from kegnet_pl.sources.base import REAL_DATA, Prior, SyntheticSource
from kegnet_pl.sources.mixture import MixtureSource, normalize_shares, refuse_real_data

ENTRY_POINTS = "kegnet_pl.sources"
"""Group of entry points by which a package offers sources."""

PRIORS: tuple[Prior, ...] = get_args(Prior)
"""Kinds of prior knowledge, the weakest first."""

_MARKERS = ".,ov^<>12348sp*hH+xDdPX|_"
_RESERVED = ("_target_", "_convert_", "_recursive_", "_partial_", "_args_")

_KINDS_OF_IMAGES = {
    "procedural": {"leaves", "strokes", "fields"}, "leaves": {"leaves"}, "strokes": {"strokes"}, "blobs": {"fields"},
    "fields": {"fields"}, "normal": {"noise"}, "uniform": {"noise"},
}  # fmt: skip
"""Source of images or signals -> kinds of its samples; a missing source shares no kind with others."""

_KINDS_OF_ROWS = {"procedural": {"normal", "fields"}, "normal": {"normal"}, "fields": {"fields"}}
"""The same for rows of features."""

Specification = Mapping[str, Any]
"""Configuration entry ``source.NAME``: ``_target_`` and further arguments of the class."""


@dataclass(frozen=True)
class SourceInfo:
    """Description of a source or of a mixture, for tables, plots and folders.

    Attributes:
        name: Name in the configuration; of a mixture, the names with their shares in percent: ``kegnet50_normal50``.
        title: Name in tables and plots.
        prior: Prior knowledge in the samples: ``none``, ``teacher``, ``procedural``, ``teacher + procedural`` or
            ``real data``.
        color: Color in plots, ``#rrggbb``.
        marker: Marker in plots, one letter of matplotlib.
        needs_generators: True if the source needs trained generators.
        shares: Name of each source -> its share; the shares sum to 1.
        needs_data: True if the source needs the real training data.
    """

    name: str
    title: str
    prior: str
    color: str
    marker: str
    needs_generators: bool
    shares: dict[str, float]
    needs_data: bool = False

    @property
    def is_ceiling(self) -> bool:
        """True if the samples are real data: the student is a ceiling, not a data-free result."""
        return self.prior == REAL_DATA

    def shaped(self, oversampling: int, matching: float) -> "SourceInfo":
        """Return the description of samples that a teacher selects or matches (see the settings of these names)."""
        return replace(self, prior=join_priors([self.prior, "teacher"])) if oversampling > 1 or matching else self

    def to_dict(self) -> dict[str, Any]:
        """Return the description as ``results.json`` has it."""
        return asdict(self)


def find_source_class(name: str, specification: Specification | None = None) -> type[SyntheticSource]:
    """Find the class of a source by its name.

    The class is that of the configuration entry ``source.NAME`` (the specification), else of the package's own entry
    ``conf/source/NAME.yaml``, else of an entry point of the group ``kegnet_pl.sources``.

    Raises:
        ValueError: If there is no such source, it cannot be imported, or its class attributes are incomplete.
    """
    target = (specification or {}).get("_target_") or _builtin_targets().get(name)
    if target is not None:
        return _check(name, _import(name, target))
    offered = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = ", ".join(sorted({*_builtin_targets(), *offered}))
        raise ValueError(
            f"Expected a source with an entry `source.{name}` or an entry point of the group {ENTRY_POINTS}, but got "
            f"{name!r}. Use one of {known}, or set +source.{name}._target_=package.module.Class."
        )
    try:
        found = offered[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Expected an importable class for the source {name}, but its entry point {offered[name].value} failed: "
            f"{error}. Repair or remove the package with this entry point."
        ) from error
    return _check(name, found)


def describe_source(name: str, specification: Specification | None = None) -> SourceInfo:
    """Describe a single source; see :func:`find_source_class`."""
    found = find_source_class(name, specification)
    return SourceInfo(
        name, found.title, found.prior, found.color, found.marker, found.needs_generators, {name: 1.0}, found.needs_data
    )


def describe_mixture(
    shares: Mapping[str, float], specifications: Mapping[str, Specification] | None = None
) -> SourceInfo:
    """Describe a mixture of sources, by the shares of their names; a mixture of one source is that source.

    Raises:
        ValueError: If a source cannot be found, a share is not a positive number, or real data is one of several.
    """
    normalized = normalize_shares(shares)
    members = [describe_source(name, (specifications or {}).get(name)) for name in normalized]
    if len(members) == 1:
        return members[0]
    refuse_real_data({member.name: member.prior for member in members})
    percents = [f"{100 * share:.4g}" for share in normalized.values()]
    return SourceInfo(
        name="_".join(f"{member.name}{percent}" for member, percent in zip(members, percents, strict=True)),
        title=" + ".join(f"{member.title} {percent} %" for member, percent in zip(members, percents, strict=True)),
        prior=join_priors(member.prior for member in members),
        color=MixtureSource.color,
        marker=MixtureSource.marker,
        needs_generators=any(member.needs_generators for member in members),
        shares=normalized,
    )


def join_priors(priors: Iterable[str]) -> str:
    """Return the prior knowledge of several sources together, as tables show it: ``teacher + procedural``."""
    parts = {part for prior in priors for part in prior.split(" + ")}
    return " + ".join(prior for prior in PRIORS[1:] if prior in parts) or "none"


def find_related(names: Iterable[str], input_shape: Sequence[int]) -> set[str]:
    """Return names of sources, and those of the package's own sources that share kinds of samples with them."""
    found = set(names)
    kinds = _KINDS_OF_ROWS if len(input_shape) == 1 else _KINDS_OF_IMAGES
    used = {kind for name in found for kind in kinds.get(name, ())}
    return found | {name for name, of_source in kinds.items() if used & of_source}


def find_builtin(title: str) -> SourceInfo | None:
    """Return the package's own source with a title, None if there is none: for results that lack a description."""
    return next((info for info in map(describe_source, _builtin_targets()) if info.title == title), None)


def build_source(
    shares: Mapping[str, float],
    specifications: Mapping[str, Specification | None] | None = None,
    *,
    input_shape: Sequence[int],
    teacher: nn.Module | None = None,
    generators: Sequence[nn.Module] | None = None,
    inputs: Tensor | None = None,
    device: torch.device | str = "cpu",
    chunk: int | None = None,
    sampling_norm: TeacherNorm = "running",
    noise_std: float = 0.0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> SyntheticSource:
    """Build a source, or a mixture of several, from names with shares relative to their sum.

    The constructor of a class gets ``input_shape``, ``device``, ``mean`` and ``std`` (of pixels), as far as it accepts
    them. If the class needs the teacher, it also gets ``teacher``. If it needs generators, it also gets ``generators``,
    ``chunk``, ``norm`` (here ``sampling_norm``) and ``noise_std``; :class:`GeneratorSource` describes them. If it needs
    data, it also gets ``inputs``, the inputs of the real training data. Arguments in its specification, the
    configuration entry ``source.NAME``, take precedence.

    Raises:
        ValueError: If a source cannot be found or built, or teacher, generators or inputs are missing.
    """
    common: dict[str, Any] = {"input_shape": tuple(input_shape), "device": device}
    common |= {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    of_generators = {"generators": generators, "chunk": chunk, "norm": sampling_norm, "noise_std": noise_std}
    sources = {}
    for name in shares:
        specification = (specifications or {}).get(name)
        found = find_source_class(name, specification)
        if found.needs_teacher and teacher is None:
            raise ValueError(f"Expected the teacher for the source {name}, but got none. Pass `teacher`.")
        if found.needs_generators and not generators:
            raise ValueError(f"Expected trained generators for the source {name}, but got none.")
        if found.needs_data and inputs is None:
            raise ValueError(f"Expected inputs of the real training data for the source {name}, but got none.")
        offered = common | (of_generators if found.needs_generators else {})
        offered |= {"teacher": teacher} if found.needs_teacher else {}
        offered |= {"inputs": inputs} if found.needs_data else {}
        taken = inspect.signature(found).parameters
        arguments = {key: value for key, value in offered.items() if key in taken}
        arguments |= {key: value for key, value in (specification or {}).items() if key not in _RESERVED}
        try:
            sources[name] = found(**arguments)
        except TypeError as error:
            raise ValueError(
                f"Expected `source.{name}` to have the arguments of {found.__name__}, but got: {error}. Set them as "
                f"source.{name}.ARGUMENT=VALUE."
            ) from error
    mixture = MixtureSource({name: (source, shares[name]) for name, source in sources.items()})
    return next(iter(sources.values())) if len(sources) == 1 else mixture


@functools.cache
def _builtin_targets() -> dict[str, str]:
    """Return name -> class of the package's own sources, read from ``conf/source``."""
    targets: dict[str, str] = {}
    for file in (importlib.resources.files("kegnet_pl.conf") / "source").iterdir():
        if file.name.endswith(".yaml"):
            targets |= {name: entry["_target_"] for name, entry in yaml.safe_load(file.read_text()).items()}
    return dict(sorted(targets.items()))


def _import(name: str, target: str) -> Any:
    module, _, attribute = str(target).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Expected `source.{name}._target_` to be an importable class, but got {target}: {error}. Use "
            f"package.module.Class."
        ) from error


def _check(name: str, found: Any) -> type[SyntheticSource]:
    if not (isinstance(found, type) and issubclass(found, SyntheticSource)):
        raise ValueError(f"Expected the source {name} to be a subclass of SyntheticSource, but got {found!r}.")
    valid: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "title": ("a name", lambda value: isinstance(value, str) and value.strip() != ""),
        "color": ("'#rrggbb'", lambda value: re.fullmatch("#[0-9a-fA-F]{6}", str(value)) is not None),
        "marker": (f"one letter of {_MARKERS}", lambda value: value in tuple(_MARKERS)),
        "prior": (f"one of {', '.join(PRIORS)}", lambda value: value in PRIORS),
    }
    if getattr(found, "needs_data", False):
        valid["prior"] = (f"{REAL_DATA!r}, as it needs real data", lambda value: value == REAL_DATA)
    for attribute, (allowed, is_valid) in valid.items():
        value = getattr(found, attribute, None)
        if not is_valid(value):
            raise ValueError(f"Expected {found.__name__}.{attribute} to be {allowed}, but got {value!r}.")
    return found
