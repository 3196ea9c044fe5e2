"""Post-training quantisation to int8 with ONNX Runtime, and ONNX files as networks."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kegnet_pl.api.export import export_network, import_onnx, quiet_exporters
from kegnet_pl.networks import Answers, OutputKey
from kegnet_pl.networks.answers import Outputs
from kegnet_pl.networks.execution import check_values, chunk_size
from kegnet_pl.networks.handling import copy_network, to_float32
from kegnet_pl.networks.validation import to_shape
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import UserError, first_line
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.sources import SyntheticSource

CalibrationMethod = Literal["minmax", "percentile", "entropy"]
"""Method that chooses the range of an activation from its values for the calibration samples."""

_CHUNK = 64
"""Maximum number of samples per forward pass of the calibration."""


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: ONNX Runtime runs it on the CPU, with as many threads as PyTorch, without gradients.

    It has no parameters. Copies of it share the file. If the file has a fixed batch size, batches are split and padded.

    Args:
        path: A file with one input and one output, such as :func:`export_network` and :func:`quantize` write.
        dequantize: True to dequantise int8 weights once, when the file is read, instead of at every call: for a file
            whose activations are floating-point.

    Raises:
        UserError: If ONNX Runtime is not installed or cannot read the file.
    """

    def __init__(self, path: str | Path, *, dequantize: bool = False) -> None:
        super().__init__()
        self.path = Path(path)
        self.dequantize = dequantize
        self._session: tuple[int, Any] | None = None
        self._open()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def forward(self, x: Tensor) -> Tensor:
        """Return the output ``(B, ...)`` for a batch, on the device of the batch."""
        session = self._open()
        (batch, *_), name = session.get_inputs()[0].shape, session.get_inputs()[0].name
        size = batch if isinstance(batch, int) else len(x)
        parts = []
        for part in x.detach().cpu().float().split(max(size, 1)):
            padded = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
            parts.append(torch.from_numpy(session.run(None, {name: padded.numpy()})[0])[: len(part)])
        return torch.cat(parts).to(x.device)

    def _open(self) -> Any:
        """Return a session with PyTorch's current number of threads."""
        threads = torch.get_num_threads()
        if self._session is None or self._session[0] != threads:
            runtime = import_onnx()
            options = runtime.SessionOptions()
            options.intra_op_num_threads = threads
            # Threads that wait for work would slow down networks that are measured in turns with this one.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            if self.dequantize:
                options.add_session_config_entry("session.disable_quant_qdq", "1")
            try:
                session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # errors of the runtime share no class
                raise UserError(
                    f"Expected an ONNX file in {self.path}, but ONNX Runtime cannot read it: {first_line(error)}"
                ) from error
            self._session = threads, session
        return self._session[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which opens its own session."""
        return self.__dict__ | {"_session": None}


def quantize(
    network: nn.Module,
    path: str | Path,
    input_shape: int | Sequence[int],
    samples: Tensor | None = None,
    *,
    method: CalibrationMethod = "minmax",
    batch_size: int | None = None,
    outputs: Outputs | Answers = "auto",
    output_key: OutputKey = None,
) -> OnnxNetwork:
    """Quantise a network to int8 with ONNX Runtime's quantiser, without training, and write it as ONNX.

    Weights are signed, with a scale per output channel. Activations are unsigned, with a scale per tensor. Batch norm
    is merged into convolutions. Layers that ONNX Runtime does not quantise stay in float32.

    Args:
        network: Any classifier; it is not changed. If it returns a tuple or dict, the file returns logits.
        path: The file to write.
        input_shape: Shape of one sample.
        samples: Calibration samples ``(N, *input_shape)``, as the network takes them, which determine the ranges of
            activations; a few hundred suffice. None to quantise weights alone: the file is small, but not faster.
        method: ``"minmax"`` takes the whole range of the samples, ``"percentile"`` leaves out 0.01 % at both ends,
            ``"entropy"`` takes the range that changes the distribution least. The latter two take longer.
        batch_size: Samples of every batch of the file; None for any number.
        outputs: Type of the output of a network that returns a tuple or dict, see :func:`export_network`.
        output_key: Key, attribute or position of its tensor; None finds it.

    Returns:
        The file as a network.

    Raises:
        ValueError: If samples have another shape, are not finite or too few, or the method is unknown.
        UserError: If packages are missing, or the network cannot be exported or quantised.
    """
    path, input_shape = Path(path), to_shape(input_shape)
    if path.is_dir():
        raise UserError(
            f"Expected `path` to be a file to write, but {path} is a folder. Add a name: {path / 'int8.onnx'}"
        )
    samples = _check_samples(samples, input_shape, method, batch_size)
    import_onnx()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_values(network)
        plain = to_float32(copy_network(network))
        (exported,) = export_network(
            plain, folder, input_shape, ["onnx"], batch_size=batch_size, outputs=outputs, output_key=output_key
        )
        prepared, written = folder / "prepared.onnx", folder / "int8.onnx"
        try:
            with quiet_exporters(), contextlib.redirect_stdout(io.StringIO()):
                from onnxruntime.quantization.preprocess import quant_pre_process

                # The exporter writes all shapes: ONNX Runtime need not infer symbolic ones.
                quant_pre_process(str(exported.path), str(prepared), skip_symbolic_shape=True)
                if samples is None:
                    _quantize_weights(prepared, written)
                else:
                    size = batch_size or min(_CHUNK, chunk_size(input_shape, torch.device("cpu")))
                    _quantize_all(prepared, written, samples, size, method)
        except Exception as error:  # errors of the runtime share no class
            raise UserError(
                f"Expected a network that ONNX Runtime can quantise, but {type(network).__name__} failed: "
                f"{first_line(error)}"
            ) from error
        atomic_write(path, written.read_bytes())
    return OnnxNetwork(path, dequantize=samples is None)


def draw_samples(source: SyntheticSource, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return at least ``n`` calibration samples of a source, and as many held-out samples to measure agreement.

    Both are ``(N, *input_shape)``, on the CPU.
    """
    count = -(-n // source.multiple) * source.multiple
    return source.sample(count, seed).cpu(), source.sample(count, derive_seed(seed, "held out")).cpu()


def _check_samples(
    samples: Tensor | None, input_shape: Sequence[int], method: str, batch_size: int | None
) -> Tensor | None:
    if method not in get_args(CalibrationMethod):
        raise ValueError(f"Expected `method` to be one of {get_args(CalibrationMethod)}, but got {method!r}.")
    if samples is None:
        return None
    if not isinstance(samples, Tensor) or tuple(samples.shape[1:]) != tuple(input_shape) or samples.ndim < 2:
        found = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"Expected `samples` of shape (N, {', '.join(map(str, input_shape))}), but got {found}.")
    least = batch_size or 1
    if len(samples) < least:
        raise ValueError(f"Expected at least {least} calibration samples, a whole batch, but got {len(samples)}.")
    if not bool(samples.isfinite().all()):
        raise ValueError("Expected finite calibration samples, but got NaN or infinite values.")
    # A file with a fixed batch size takes no smaller batch.
    return samples.detach().cpu().float()[: len(samples) // least * least]


def _quantize_all(source: Path, target: Path, samples: Tensor, size: int, method: CalibrationMethod) -> None:
    """Quantise weights and activations."""
    from onnxruntime import quantization

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Batches of the samples; the calibration asks for one after another, so that one is in memory at a time."""

        def __init__(self) -> None:
            self.batches = samples.split(size)
            self.waiting: Iterator[Tensor] = iter(())

        def __len__(self) -> int:
            return len(self.batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.waiting = iter(self.batches[start_index:end_index])

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.waiting, None)
            return None if batch is None else {"input": batch.numpy()}

    methods = {name.lower(): value for name, value in quantization.CalibrationMethod.__members__.items()}
    quantization.quantize_static(
        str(source), str(target), Batches(), per_channel=True, activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8, calibrate_method=methods[method],
        extra_options={"CalibStridedMinMax": 1, "CalibPercentile": 99.99},
    )  # fmt: skip


def _quantize_weights(source: Path, target: Path) -> None:
    """Quantise the weights of convolutions and matrix products; activations and biases stay in float32."""
    import onnx
    from onnxruntime import quantization

    class Weights(quantization.QDQQuantizer):  # type: ignore[misc]
        """ONNX Runtime's quantiser for weights alone: it leaves activations and biases as they are."""

        def quantize_activation_tensor(self, *_: Any, **__: Any) -> None:
            pass

        def quantize_bias_tensor(self, *_: Any, **__: Any) -> None:
            pass

    types = quantization.QuantType
    quantizer = Weights(
        onnx.load(source), True, False, types.QInt8, types.QUInt8, None, [], [],
        ["Conv", "ConvTranspose", "Gemm", "MatMul"], {},
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(target))
