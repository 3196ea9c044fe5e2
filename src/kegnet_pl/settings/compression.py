"""Settings of the compression."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kegnet_pl.settings.base import FREE, Count, Settings, Share, explained
from kegnet_pl.settings.data import OneMixture

DEFAULT_SOURCE = {"procedural": 1.0}
"""Source of the samples of a compression, with its share."""


class CompressionRule(Settings):
    """The rank of some layers."""

    layers: str | list[str]
    """Pattern of layer names, or a list of patterns. The first rule that matches a layer applies."""
    rank: Any
    """evbmf, full, target, a number of components, a fraction in (0, 1], or {in: ..., out: ...}."""


class CompressionPlan(Settings):
    """Layers of a network to compress, and their ranks. null is the same as the default."""

    rules: list[CompressionRule] | None = Field(
        default=None, json_schema_extra=explained("a list of {layers: ..., rank: ...}")
    )
    """Ranks by layer. null: the rules in `plans` for the teacher."""
    target: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """Ratio teacher / student of the quantity in `by`, over the whole network, for rank=target."""
    when_larger: Literal["keep", "compress"] = "keep"
    """keep: a layer is factorised only if this reduces its cost in `by`. compress: it is always factorised."""
    fold: bool | None = None
    """true: redundant factors of a layer are merged. false: always three layers, as in the paper. null: true with
    fit=function."""

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value is not None} if type(values) is dict else values


def _check_speed(settings: "CompressionSettings") -> Iterator[str]:
    if settings.fit == "weights":
        values = {"by": (settings.by, ("parameters",)), "round_to": (settings.round_to, (None, 1))}
        for name, (value, defaults) in values.items():
            if value not in defaults:
                yield (
                    f"Expected `compression.fit` to be function with compression.{name}={value}, since ranks are "
                    f"chosen with samples, but got weights. Set compression.fit=function."
                )


def _check_pruning(settings: "CompressionSettings") -> Iterator[str]:
    method = settings.method
    if method == "tucker":
        return
    if settings.target is None:
        yield f"Expected `compression.target`, the ratio to reach, with compression.method={method}, but got null."
    if settings.fit == "weights":
        yield (
            f"Expected `compression.fit` to be function with compression.method={method}, which always needs samples, "
            f"but got weights. Set compression.fit=function."
        )
    if method == "auto":
        return
    for name, default in (("rules", None), ("fold", None), ("when_larger", "keep")):
        value = getattr(settings, name)
        if value != default:
            yield (
                f"Expected no `compression.{name}` with compression.method=pruning, which removes channels and has no "
                f"ranks, but got {value!r}. Remove it, or choose compression=ratio."
            )


class CompressionSettings(CompressionPlan):
    """Layers of the teacher to compress, and their ranks, or the target of pruning."""

    RULES = (_check_speed, _check_pruning)

    method: Literal["tucker", "pruning", "auto"] = "tucker"
    """tucker: layers are factorised. pruning: channels, units and attention heads are removed, without ranks. auto:
    pruning and factorisation, with and without merged factors, are compared. The network with the highest agreement
    with the teacher on held-out synthetic samples is kept."""
    name: str = Field(json_schema_extra=FREE)
    """Name in tables."""
    rank: Any = Field(default=None, json_schema_extra=FREE)
    """For compression=fraction: share of every side to keep."""
    fit: Literal["weights", "function"] = "weights"
    """weights: ranks for the target and factors depend on weights only. function: they preserve logits of samples."""
    by: Literal["parameters", "macs", "latency"] = "parameters"
    """Quantity of the target. macs and latency require fit=function. latency is the measured time for a batch on the
    device of the run."""
    round_to: Count | None = None
    """Ranks for the target are multiples of this number. In pruning, layers keep a multiple of this number of channels,
    or all channels. null: 8 with by=latency, otherwise 1. Above 1, it requires fit=function."""
    batch_size: Count = 64
    """Samples per batch for by=latency."""
    source: OneMixture = Field(
        default=DEFAULT_SOURCE,
        json_schema_extra=explained("the name of a source, or a mixture of sources with shares"),
    )
    """Source of the samples for fit=function, or a mixture. It cannot use generators or real data."""
    samples: Annotated[int, Field(ge=10)] = 2_000
    """Number of samples for fit=function."""
    oversampling: Count = 4
    """Candidates per sample. Above 1, the teacher selects samples with balanced classes, nearest to its batch-norm
    statistics."""
    matching: Share = 1.0
    """Share of the samples that are then matched to the teacher's batch-norm statistics by gradient steps."""
    plans: dict[str, CompressionPlan] = Field(default={}, json_schema_extra=explained("plans by name") | FREE)
    """Name of a teacher -> the paper's plan for it."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that the result depends on, without those of samples that are not used."""
        unused = {"fit", "source", "samples", "oversampling", "matching"} if self.fit == "weights" else set()
        # Stages of earlier versions lack these settings.
        rounds = self.by == "latency" if self.round_to is None else self.round_to > 1
        idle = (("fold", not self.folds), ("round_to", not rounds), ("matching", not self.matching))
        unused |= {name for name, off in idle if off}
        unused |= {"batch_size"} if self.by != "latency" else set()
        unused |= {"by"} if self.by == "parameters" else set()
        unused |= {"tucker": {"method"}, "pruning": {"rules", "fold", "when_larger"}, "auto": set()}[self.method]
        found = {name: value for name, value in super().fingerprint().items() if name not in unused}
        return found | ({"fold": "compared"} if self.method == "auto" and self.fold is None else {})

    @property
    def folds(self) -> bool:
        """True if redundant factors are merged."""
        return self.fit == "function" if self.fold is None else self.fold

    def plan_for(self, teacher: str) -> Self:
        """Return the settings with the rules for a teacher. Given settings take precedence over those of the plan."""
        plan = self.plans.get(teacher)
        if self.rules is not None or plan is None:
            return self
        update = {name: getattr(plan, name) for name in plan.model_fields_set - self.model_fields_set}
        return self.model_copy(update=update)
