"""Base class of all settings, and the types of their fields."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
LRSchedulerName = Literal["constant", "cosine"]
BatchNormStatistics = Literal["batch", "running"]
StudentNorm = Literal["batch", "frozen", "adapt"]
Parallel = Literal["auto", "vmap", "sequential"]
Selection = Literal["last", "synthetic", "real"]
Outputs = Literal["auto", "logits", "probabilities", "log_probabilities", "sigmoid"]
Resume = Literal["auto", "never", "require"]

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Rules = tuple[Callable[[Any], Iterator[str]], ...]
"""Rules across fields: each is given the settings and yields complete messages."""

FREE: JsonDict = {"fingerprint": False}
"""Marks a setting that does not change the result. Fingerprints exclude it."""


def explained(expected: str, hint: str = "") -> JsonDict:
    """Return parts of a field's error message: the allowed values, and a remedy."""
    return {"expected": expected, "hint": hint}


Share = Annotated[float, Field(ge=0, le=1, json_schema_extra=explained("a number from 0 to 1"))]


def _check_object(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("_target_"), str):
        raise PydanticCustomError("object", "an object with `_target_`")
    return value


Object = Annotated[
    dict[str, Any], AfterValidator(_check_object), Field(json_schema_extra=explained("an object with `_target_`"))
]
"""An object that Hydra instantiates: ``_target_`` and arguments."""


class Settings(BaseModel):
    """A group of settings. Unknown names, wrong types and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    RULES: ClassVar[Rules] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        found = [message for rule in self.RULES for message in rule(self)]
        if found:
            raise PydanticCustomError("complete", "{message}", {"message": "\n".join(found)})
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that the result depends on, plain."""
        free = {
            name
            for name, field in type(self).model_fields.items()
            if isinstance(field.json_schema_extra, dict) and not field.json_schema_extra.get("fingerprint", True)
        }
        return self.model_dump(by_alias=True, exclude=free)
