"""Warnings about the networks of a run, for the terminal, the report and ``results.json``."""

from typing import Any

from kegnet_pl.api.checks import LOW_AGREEMENT, describe_agreement
from kegnet_pl.pipeline.store import Stage
from kegnet_pl.reporting.agreement import join, name_classes
from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.tables import explain_difference
from kegnet_pl.runtime.errors import override
from kegnet_pl.settings import RunSettings

_CONVINCED = 0.5
"""Minimum share of a generator's samples to which the teacher should give the intended class."""

_ABOVE_CHANCE = 0.1
"""Margin over chance (1 / classes); a share below it counts as chance."""

_LOSS = 0.03
"""Accuracy that a network may lose before it counts as worse than its teacher, as in results/NETWORKS.md."""


def warn_before_training(settings: RunSettings, compression: Stage) -> list[str]:
    """Return a sentence for the terminal if a compressed network agrees little with the teacher before training."""
    agreement = compression.metrics.get("agreement")
    if agreement is None or not warn_of_compression(settings, compression):
        return []
    return [
        f"The compressed network gives the teacher's class to only {agreement:.0%} of held-out samples before "
        f"training. Training does not always recover the loss. A lower compression.target loses less."
    ]


def warn_of_teacher(accuracy: float | None, classes: int) -> list[str]:
    """Return a warning if the accuracy of the teacher on the test data is about that of chance."""
    if accuracy is None or accuracy >= _chance(classes):
        return []
    return [
        f"The teacher's accuracy on the test data is {accuracy:.1%}. The level of chance is {1 / classes:.0%}. Check "
        f"that the test samples are normalised as the teacher's training data, and that the classes have the teacher's "
        f"order."
    ]


def warn_of_compression(settings: RunSettings, compression: Stage, *, recovered: bool = False) -> list[str]:
    """Return a warning if a compressed network agrees little with the teacher on held-out samples.

    There is none if the student that was trained from it has recovered.
    """
    if settings.student.network is not None or settings.compression.fit == "weights" or recovered:
        return []
    method = compression.metrics.get("method", settings.compression.method)
    sentence = describe_agreement(compression.metrics.get("agreement"), method)
    return [] if sentence is None else [sentence]


def warn_of_training(
    settings: RunSettings, student: Stage, generators: Stage | None, *, mixed: bool = False
) -> list[str]:
    """Return warnings about a student's samples and its training.

    Args:
        settings: Settings of the run.
        student: Stage of the student.
        generators: Stage of the generators, if its source needs them.
        mixed: True if its source is a mixture.
    """
    classes, metrics = settings.data.classes, student.metrics
    found = [] if generators is None else _warn_of_generators(generators.metrics, classes)
    count, labels = metrics.get("unreached_classes", 0), metrics.get("unreached", [])
    if count:
        mixture = override("sources", [{"kegnet": 0.5, "procedural": 0.5}])
        found.append(
            f"The teacher gives {name_classes(labels, count)} to none of the training samples, "
            f"so the student learns little about {'them' if count > 1 else 'it'}. Use "
            f"{'other sources' if mixed else f'another source, or a mixture ({mixture})'}."
        )
    share = metrics.get("train/agreement", metrics.get("train/accuracy"))  # the latter from older versions
    if share is not None and share < _chance(classes):
        found.append(
            f"The student gives the teacher's class to only {share:.0%} of its training samples. The level of chance "
            f"is {1 / classes:.0%}. Train longer (student.epochs), change student.optimizer.lr, or compress less."
        )
    return found


def warn_of_agreement(agreement: dict[str, Any] | None, classes: int) -> list[str]:
    """Return a warning if a network agrees with its teacher about as often as by chance."""
    mean = None if agreement is None else agreement["mean"]
    if mean is None or mean >= _chance(classes):
        return []
    return [
        f"The network gives the teacher's class to only {mean:.0%} of synthetic samples of other sources than its own. "
        f"The level of chance is {1 / classes:.0%}. Test it on your data before you use it."
    ]


def is_worse(agreement: dict[str, Any] | None, accuracy: float | None, teacher_accuracy: float | None) -> bool | None:
    """Return True if a network is worse than its teacher: by test accuracy, else by agreement; None if not known."""
    if accuracy is not None and teacher_accuracy is not None:
        return accuracy < teacher_accuracy - _LOSS
    if (
        agreement is None
        or agreement["mean"] is None
        or all(one["same_class"] for one in agreement["sources"].values())
    ):
        return None
    return bool(agreement["mean"] < LOW_AGREEMENT)


def warn_of_student(
    agreement: dict[str, Any] | None,
    accuracy: float | None,
    teacher_accuracy: float | None,
    classes: int,
    *,
    compressed: bool = True,
) -> list[str]:
    """Return a warning if a trained student is worse than its teacher.

    ``compressed`` is False for a student that is not the compressed teacher.
    """
    by_chance = warn_of_agreement(agreement, classes)
    if by_chance or not is_worse(agreement, accuracy, teacher_accuracy):
        return by_chance
    remedy = "Lower compression.target, train longer (student.epochs), or use other sources."
    if not compressed:
        remedy = "Use a larger student, train longer (student.epochs), or use other sources."
    if accuracy is not None and teacher_accuracy is not None:
        return [
            f"The student's accuracy is {100 * (teacher_accuracy - accuracy):.1f} points below the teacher's. {remedy}"
        ]
    assert agreement is not None
    return [
        f"The student gives the teacher's class to only {agreement['mean']:.0%} of synthetic samples of other sources "
        f"than its own. Below {LOW_AGREEMENT:.0%} some networks lost more than 3 points of accuracy, and others none "
        f"(results/estimates.md). {remedy} Or measure the accuracy (data=files data.test=FILE)."
    ]


def warn_of_regression(row: Row, start: Row | None, *, chosen: bool = False) -> list[str]:
    """Return a warning if training made a network worse: by test accuracy, else by agreement with the teacher.

    Args:
        row: The student.
        start: The compressed teacher that it was initialised with; None for a student of another structure.
        chosen: True if the learning rate was chosen by short trainings.
    """
    if start is None:
        return []
    if row.accuracy is not None and start.accuracy is not None:
        name, after, before = "accuracy", row.accuracy, start.accuracy
    elif row.mean_agreement is not None and start.mean_agreement is not None:
        name, after, before = "agreement with the teacher", row.mean_agreement, start.mean_agreement
    else:
        return []
    if before - after <= _LOSS:
        return []
    lower = "a lower number" if row.learning_rate is None else f"a number below {row.learning_rate:g}"
    remedy = "" if chosen else f" Or set student.optimizer.lr=auto or {lower}."
    return [
        f"Training made the network worse: the {name} is {after:.1%}, and was {before:.1%} before training. Use the "
        f"{start.name} network: 'sources=[]' trains no student, and python -m kegnet_pl.export RUN --method "
        f"{start.method} exports this network.{remedy}"
    ]


def warn_of_quantization(quantization: dict[str, Any] | None) -> list[str]:
    """Return a warning if a network in int8 differs from the one in float32."""
    sentence = None if quantization is None else explain_difference(quantization["agreement"])
    return [] if sentence is None else [sentence]


def _chance(classes: int) -> float:
    """Return the share below which an agreement counts as chance."""
    return 1 / classes + _ABOVE_CHANCE


def _warn_of_generators(metrics: dict[str, Any], classes: int) -> list[str]:
    shares = {int(index): one.get("train/accuracy") for index, one in metrics["generators"].items()}
    least = max(_CONVINCED, _chance(classes))
    weak = {index: share for index, share in shares.items() if share is not None and share < least}
    if not weak:
        return []
    named = join([f"{index} ({share:.0%})" for index, share in weak.items()])
    return [
        f"The teacher gives the intended class to few samples of generator{'s' * (len(weak) > 1)} {named}. Train "
        f"longer (generator.epochs), change generator.optimizer.lr, or use procedural samples ('sources=[procedural]')."
    ]
