"""Settings of the real data and of the sources of samples."""

import math
import shlex
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from kegnet_pl.settings.base import Count, Positive, Settings, explained

ENTRY_POINTS = "kegnet_pl.sources"
"""Group of entry points by which other packages add sources."""

SHAPES = (
    "[channels, height, width] for images, [channels, length] for signals, [channels, depth, height, width] for "
    "volumes, or [features]"
)
"""Shapes of a sample, for messages."""

Mixture = dict[str, float]
"""Name of a source -> its share of the samples; shares sum to 1."""


def _check_shape(shape: list[int]) -> list[int]:
    if len(shape) > 4:
        raise PydanticCustomError("shape", "more dimensions than a volume has")
    return shape


def _check_files(settings: "DataSettings") -> Iterator[str]:
    given = settings.model_extra or {}
    names = [name for name in ("train", "val", "test") if given.get(name) is not None]
    ours = settings.target is None or settings.target.startswith("kegnet_pl.data.")
    if ours and settings.target != "kegnet_pl.data.FilesDataModule" and names:
        files = shlex.join(f"data.{name}={given[name]}" for name in names)
        yield (
            f"Expected data=files for the file in `data.{names[0]}`, but got data={settings.name}, which does not read "
            f"this file. Set data=files {files}, with data.input_shape and data.classes."
        )


def _check_value_range(data: "DataSettings") -> Iterator[str]:
    given = data.value_range
    if given is None:
        return
    numbers = isinstance(given, list) and len(given) == 2 and all(type(value) in (int, float) for value in given)
    if not numbers or not (math.isfinite(given[0]) and math.isfinite(given[1]) and given[0] < given[1]):
        yield (
            f"Expected `data.value_range` to be null, or the values of a black and a white pixel, such as [0, 1], "
            f"[0, 255] or [-1, 1], but got {given!r}."
        )
    elif len(data.input_shape) not in (3, 4):
        yield (
            f"Expected images or volumes for `data.value_range`, but got samples of shape {data.input_shape}. Set "
            f"data.value_range=null, and standardise the inputs in the network."
        )


class DataSettings(Settings):
    """Real data for training a teacher, for accuracy, and for the source real. Others are passed to the data module."""

    model_config = ConfigDict(extra="allow")
    RULES = (_check_value_range, _check_files)

    target: str | None = Field(default=None, alias="_target_")
    """Class of the data module. null: there is no real data."""
    name: str
    """Name of the data set in tables."""
    input_shape: Annotated[list[Count], Field(min_length=1), AfterValidator(_check_shape)] = Field(
        json_schema_extra=explained(SHAPES)
    )
    """Shape of one sample: [channels, height, width], [channels, length], [channels, depth, height, width] or
    [features]."""
    classes: Annotated[int, Field(ge=2)]
    """Number of classes."""

    @property
    def value_range(self) -> list[float] | None:
        """Values of a black and a white pixel in the teacher's inputs; None if its inputs are standardised."""
        found: list[float] | None = (self.model_extra or {}).get("value_range")
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings of the data, without the folders that it is read from."""
        left_out = {"root", "download", "train", "val", "test"}
        left_out |= {"value_range"} if self.value_range is None else set()  # data of earlier versions lacks it
        return {name: value for name, value in super().fingerprint().items() if name not in left_out}


def _name_to_mixture(item: Any) -> Any:
    return {item: 1.0} if isinstance(item, str) else item


def _normalise(shares: Mixture) -> Mixture:
    total = math.fsum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _mixture_to_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _check_distinct(mixtures: list[Mixture]) -> list[Mixture]:
    if any(mixture in mixtures[:index] for index, mixture in enumerate(mixtures)):
        raise PydanticCustomError("sources", "duplicates")
    return mixtures


OneMixture = Annotated[
    dict[str, Positive], Field(min_length=1), BeforeValidator(_name_to_mixture), AfterValidator(_normalise)
]
"""Sources of samples with shares, relative to their sum; or the name of one source."""

Mixtures = Annotated[
    list[OneMixture],
    BeforeValidator(_mixture_to_list),
    AfterValidator(_check_distinct),
    Field(
        json_schema_extra=explained(
            "a list of different sources: names, or mixtures with positive shares such as {kegnet: 0.5, normal: 0.5}"
        )
    ),
]
"""Sources of samples, a mixture for each student of a run."""
