"""Settings of the quantisation."""

from typing import Annotated, Literal

from pydantic import Field

from kegnet_pl.settings.base import Settings, explained
from kegnet_pl.settings.compression import DEFAULT_SOURCE
from kegnet_pl.settings.data import OneMixture


class QuantizationSettings(Settings):
    """Post-training quantisation of the teacher and of every student, with ONNX Runtime (extra onnx)."""

    format: Literal["int8"] | None = None
    """Format of the weights. null: nothing is quantised."""
    activations: Literal["int8", "float"] = "int8"
    """int8: activations are also quantised, with ranges from calibration samples. float: only weights are quantised,
    without samples."""
    source: OneMixture = Field(
        default=DEFAULT_SOURCE,
        json_schema_extra=explained("the name of a source, or a mixture of sources with shares"),
    )
    """Source of the calibration samples, or a mixture. kegnet needs a run with generators. real is a ceiling, not a
    data-free result."""
    samples: Annotated[int, Field(ge=10)] = 256
    """Number of calibration samples."""

    @property
    def needs_samples(self) -> bool:
        """True if activations are quantised."""
        return self.format is not None and self.activations == "int8"
