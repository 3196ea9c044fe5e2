"""The compression plan: choice of layers and ranks, and their factorisation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast, get_args

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from kegnet_pl.compression.activations import Calibration, measure_layers
from kegnet_pl.compression.allocation import needs_inputs
from kegnet_pl.compression.attention import split_attention
from kegnet_pl.compression.choice import RankChoice, WhenLarger, check_target, default_round_to
from kegnet_pl.compression.costs import Cost, CostName
from kegnet_pl.compression.reconstruction import measure_agreement, reconstruct
from kegnet_pl.compression.report import (
    Compressed,
    CompressionReport,
    LayerReport,
    ModelSize,
    count_parameters,
    measure_size,
)
from kegnet_pl.compression.rules import LAYERS, Candidate, Rule, check_patterns, find_misused, find_obstacles
from kegnet_pl.compression.tucker import (
    Convolution,
    Factorisable,
    Ranks,
    factorise,
    is_transposed,
    replace_layer,
)
from kegnet_pl.networks.execution import eval_mode, first_weight
from kegnet_pl.networks.handling import check_copy, copy_network, freeze, unfreeze_frozen
from kegnet_pl.networks.hooks import carry_hooks
from kegnet_pl.networks.validation import FORWARD_ERRORS, samples_for_trial
from kegnet_pl.runtime.errors import first_line


@contextmanager
def to_compress(network: nn.Module, input_shape: Sequence[int]) -> Iterator[nn.Module]:
    """Return a copy of a network that can be compressed in place; the global random state stays as it is.

    Its frozen weights stay frozen unless all are (:func:`unfreeze_frozen`). Its attentions are split
    (:func:`split_attention`).

    Raises:
        ValueError: If weights are not finite, or a copy of the network calls layers of the original.
    """
    invalid = [name for name, weight in network.named_parameters() if not bool(weight.detach().isfinite().all())]
    if invalid:
        raise ValueError(f"Expected finite weights, but got NaN or infinite values in {', '.join(invalid[:8])}.")
    devices = {value.device for value in network.parameters() if value.device.type == "cuda"}
    with torch.random.fork_rng([device.index for device in devices]):  # constructors draw weights to be overwritten
        copied = copy_network(network)
        with eval_mode(copied), torch.no_grad():
            check_copy(network, copied, samples_for_trial(input_shape, 2).to(first_weight(copied)))
        unfreeze_frozen(copied)
        split_attention(copied)
        yield copied


def find_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a report, by name.

    Raises:
        ValueError: If the network is a single layer.
    """
    layers: dict[str, nn.Module] = {name: layer for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
    if "" in layers:
        raise ValueError(
            f"Expected a network with named layers, but got a single {type(network).__name__}. Wrap it in "
            f"nn.Sequential."
        )
    return layers


def measure_original(network: nn.Module, input_shape: Sequence[int]) -> ModelSize:
    """Return the size of a network.

    Raises:
        ValueError: If the network does not accept such samples.
    """
    try:
        return measure_size(network, input_shape)
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"Expected the network {type(network).__name__} to accept samples of shape {tuple(input_shape)}, but it "
            f"failed: {first_line(error)}"
        ) from error


class CompressionPlan:
    """Layers and ranks of a compression, applicable to any network.

    Args:
        rules: The first rule that matches a layer determines its ranks; layers without a rule are unchanged.
        target: Ratio of the whole network before / after, above 1, of its parameters or of what ``by`` names. It
            determines the ranks of sides with the rank ``"target"``. With samples, these ranks change the logits least.
            Without samples, all sides keep the same share of their squared singular values, the largest share that
            reaches the ratio. The result may exceed the ratio by more than 5 %, since one more rank of one layer would
            miss it. Then ranks of other layers are raised, starting with the smallest share.
        when_larger: Treatment of a layer whose factorisation does not reduce its cost in ``by``: ``"keep"`` leaves it
            unchanged (with a note in the report), ``"compress"`` factorises it, as the paper does with the outer
            layers of its MLP.
        fold: True to merge redundant factors (:class:`TuckerLayer`); False for three layers, as in the paper.
        by: Quantity of the target: ``"parameters"``, ``"macs"`` (multiply-accumulates), or ``"latency"``, the time for
            a batch, which is measured on the device of the samples. The latter two need samples.
        round_to: Ranks that are chosen for the target are multiples of this number, which hardware may prefer. None: 8
            for ``by="latency"``, otherwise 1. Above 1, it needs samples.
        batch_size: Samples of the batch for ``by="latency"``.

    Raises:
        ValueError: If there is no rule, ``when_larger`` or ``by`` is unknown, ``round_to`` or ``batch_size`` is below
            1, or only one of ``target`` and a rank ``"target"`` is given.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        target: float | None = None,
        when_larger: WhenLarger = "keep",
        fold: bool = False,
        *,
        by: CostName = "parameters",
        round_to: int | None = None,
        batch_size: int = 64,
    ) -> None:
        if not rules:
            raise ValueError("Expected `rules` to hold at least one rule, but got none.")
        if when_larger not in get_args(WhenLarger):
            raise ValueError(f"Expected `when_larger` to be one of {get_args(WhenLarger)}, but got {when_larger!r}.")
        round_to = default_round_to(by) if round_to is None else round_to
        check_target(target, by, round_to, batch_size)
        wanted = any("target" in rule.sides for rule in rules)
        if wanted and target is None:
            raise ValueError(
                "Expected `target`, a compression ratio, since a rule has the rank 'target', but got None."
            )
        if target is not None and not wanted:
            raise ValueError(f"Expected a rule with the rank 'target' to reach target={target}, but there is none.")
        self.rules = tuple(rules)
        self.choice = RankChoice(target, when_larger, fold, by, round_to, batch_size)

    @threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # many small decompositions: threads only wait
    def apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Compressed:
        """Compress a copy of a network.

        Args:
            network: Any network; it is not changed.
            input_shape: Shape of one sample.
            calibration: Samples. With them, ranks ``"target"`` change the logits least (:func:`allocate_ranks`), and
                layers are fitted to the network's function (:func:`reconstruct`). Without them, only weights count.
            on_progress: Called with the finished share, in [0, 1): with samples, of the layers that are fitted; else of
                the parameters of the layers to factorise.

        Returns:
            The smaller network and its report. Frozen layers stay frozen; if all are, as in a teacher, all weights are
            trainable.

        Raises:
            ValueError: If a pattern matches no convolution or dense layer, a rank is out of range, the target cannot
                be reached, weights are not finite, or the network does not accept such samples.
        """
        by, round_to = self.choice.by, self.choice.round_to
        if calibration is None and (by != "parameters" or round_to > 1):
            raise ValueError(
                f"Expected samples for by={by!r} and round_to={round_to}, which choose ranks by the function of the "
                f"network, but got none. Use fit='function'."
            )
        with to_compress(network, input_shape) as copied:
            return self._apply(copied, input_shape, calibration, on_progress)

    def _apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None,
        on_progress: Callable[[float], None],
    ) -> Compressed:
        """Compress a network in place."""
        layers = find_layers(network)
        check_patterns(self.rules, layers)
        obstacles = find_obstacles(network, layers)
        usable = [name for name in layers if name not in obstacles]
        obstacles |= find_misused(network, usable, input_shape)
        candidates, notes = self._find_candidates(layers, obstacles)
        before = measure_original(network, input_shape)
        if calibration is not None:
            teacher = freeze(copy_network(network))
            free = [c for c in candidates if "target" in c.ranks]
            of_inputs = {c.name for c in free if needs_inputs(c.layer, c.ranks, self.choice.fold)}
            moments = measure_layers(
                teacher, [name for name in layers if name not in obstacles], calibration.samples, seed=calibration.seed,
                of_inputs=of_inputs,
            )  # fmt: skip
        samples = torch.empty(0) if calibration is None else calibration.samples  # without them, parameters count
        cost = self.choice.measure_costs(network, candidates, before, samples, lambda share: on_progress(0.3 * share))
        begun = 0.3 if self.choice.by == "latency" else 0.0
        if calibration is None or self.choice.target is None:
            chosen = self.choice.by_weights(candidates, cost)
        else:
            chosen = self.choice.by_function(network, candidates, moments, cost)
        parameters_before = {name: count_parameters(layer) for name, layer in layers.items()}
        self._replace_layers(network, candidates, chosen, cost, on_progress if calibration is None else lambda _: None)
        notes |= {candidate.name: "; ".join(candidate.notes) for candidate in candidates}
        try:
            after = measure_size(network, input_shape)
        except FORWARD_ERRORS as error:
            raise ValueError(
                f"Expected a network that calls its layers, but {type(network).__name__} failed after they were "
                f"factorised; it seems to read their weights directly ({first_line(error)}). Leave those layers out "
                f"of `rules`."
            ) from error
        rows = tuple(
            LayerReport(
                layer=name,
                kind=kind_of(layer),
                in_rank=chosen[name][0] if name in chosen else None,
                out_rank=chosen[name][1] if name in chosen else None,
                parameters_before=parameters_before[name],
                parameters_after=count_parameters(network.get_submodule(name)),
                macs_before=before.layer_macs.get(name, 0),
                macs_after=after.layer_macs.get(name, 0),
                note=notes[name] or _note_macs(before.layer_macs.get(name, 0), after.layer_macs.get(name, 0)),
            )
            for name, layer in layers.items()
        )
        report = CompressionReport(rows, before.parameters, after.parameters, before.macs, after.macs)
        if calibration is None:
            return Compressed(network, report)
        fitted = reconstruct(
            teacher, network, moments, calibration, lambda share: on_progress(begun + (1 - begun) * share)
        )
        return Compressed(network, report, tuple(fitted), measure_agreement(teacher, network, calibration.held_out))

    def _find_candidates(
        self, layers: Mapping[str, nn.Module], obstacles: Mapping[str, str]
    ) -> tuple[list[Candidate], dict[str, str]]:
        """Return the layers that can be factorised, and the reason for each other layer by name."""
        notes: dict[str, str] = {}
        candidates: list[Candidate] = []
        for name, layer in layers.items():
            rule = next((rule for rule in self.rules if rule.matches(name)), None)
            if rule is None:
                notes[name] = "unchanged: no rule matches it"
            elif name in obstacles:
                notes[name] = f"unchanged: {obstacles[name]}"
            else:
                candidates.append(Candidate(name, cast(Factorisable, layer), rule.sides))
        return candidates, notes

    def _replace_layers(
        self,
        network: nn.Module,
        candidates: Sequence[Candidate],
        chosen: dict[str, Ranks],
        cost: Cost,
        on_progress: Callable[[float], None],
    ) -> None:
        """Factorise the candidates. A layer whose cost would grow gets a note, and its ranks are removed."""
        total, done = sum(count_parameters(candidate.layer) for candidate in candidates), 0
        for candidate in candidates:
            on_progress(done / total)
            done += count_parameters(candidate.layer)
            if candidate.name not in chosen:
                continue
            ranks = chosen[candidate.name]
            if self.choice.enlarges(cost, candidate, ranks):
                growth = self.choice.describe_growth(cost, candidate, ranks)
                candidate.notes.append(
                    f"unchanged: ranks in {ranks[0]}, out {ranks[1]} would not reduce its cost (+{growth})"
                )
                del chosen[candidate.name]
            else:
                new = factorise(candidate.layer, ranks, self.choice.fold).train(candidate.layer.training)
                chosen[candidate.name] = new.ranks
                carry_hooks(candidate.layer, new)
                replace_layer(network, candidate.name, new)


def _note_macs(before: int, after: int) -> str:
    """Return a note on a layer that has more operations than before."""
    return f"more MACs than before: {after / before:.2f}x" if after > before > 0 else ""


def kind_of(layer: nn.Module) -> str:
    """Return the kind of a layer in a report."""
    if isinstance(layer, nn.Linear):
        return "linear"
    if type(layer) in get_args(Convolution):
        return "transposed" if is_transposed(layer) else "conv"
    return type(layer).__name__
