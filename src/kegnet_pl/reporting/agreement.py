"""Texts on the agreement of students with their teacher, for tables, pages and cards."""

from collections.abc import Sequence

from kegnet_pl.reporting.estimates import describe_estimate
from kegnet_pl.reporting.results import Row, find_last

_FEW = 1_000
"""With fewer samples, an agreement is printed with their number: an error of a point or more is then likely."""


def explain_agreement(rows: Sequence[Row]) -> list[str]:
    """Return sentences on the agreement of the students of one run; the first row is the teacher's."""
    measured = [row for row in rows if row.agreement is not None]
    if not measured:
        return []
    last = find_last(rows)
    return [
        f"Agreement is not accuracy: it is the share of synthetic samples to which a network gives the teacher's "
        f"class, mean over classes. Samples: {describe_sources(last)}.",
        *describe_agreement(last),
        *warn_of_samples(last),
    ]


def describe_sources(row: Row) -> str:
    """Return the sources of the mean agreement of a network, and those that are left out, as text."""
    if row.agreement is None or not row.agreement["over"]:
        return "no source, since samples of all sources were used to make the network (add one to agreement.sources)"
    over = row.agreement["over"]
    left_out = [name for name in row.agreement["sources"] if name not in over]
    reason = f" ({join(left_out)} left out, since they made a network of this run)" if left_out else ""
    return join(over) + reason


def describe_agreement(row: Row) -> list[str]:
    """Return sentences on the worst class of a network and, if accuracy was not measured, on its accuracy."""
    worst, mean = None if row.agreement is None else row.agreement["worst"], row.mean_agreement
    if worst is None or mean is None:
        return []
    estimate = [f"{row.name}: {describe_estimate(mean)}"] if row.accuracy is None else []
    if worst["agreement"] >= 1:
        return estimate
    return [
        *estimate,
        f"{row.name} agrees least on class {worst['label']}: it gives the same class to "
        f"{100 * worst['agreement']:.0f} % of the {worst['samples']} samples of {worst['source']} that the teacher "
        f"assigns to this class.",
    ]


def warn_of_samples(row: Row) -> list[str]:
    """Return warnings if the samples do not cover the classes of the teacher."""
    if row.agreement is None:
        return []
    sources = row.agreement["sources"]
    if all(one["same_class"] for one in sources.values()):
        return [
            f"The teacher gives nearly all samples of {join(list(sources))} the same class, so agreement is not "
            f"informative. Check the teacher's weights and the normalisation of its inputs (data.mean and data.std), "
            f"or add another source to agreement.sources."
        ]
    count, labels = row.agreement["unreached_classes"], row.agreement["unreached"]
    if not count:
        return []
    return [
        f"The teacher gives {name_classes(labels, count)} to no sample of any source, so the agreement on "
        f"{'them' if count > 1 else 'it'} is unknown."
    ]


def name_classes(labels: Sequence[int], count: int) -> str:
    """Return ``count`` classes as text; ``labels`` has the first of them."""
    more = f" and {count - len(labels)} more" if count > len(labels) else ""
    return f"class{'es' * (count > 1)} {', '.join(map(str, labels))}{more}"


def join(names: Sequence[str]) -> str:
    """Return names as text: ``a, b and c``."""
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])


def format_agreement(value: float | None, samples: int) -> str:
    """Return an agreement in percent, as text, with the number of samples if they are few; empty if not measured."""
    few = f" of {samples}" if samples < _FEW else ""
    return "" if value is None else f"{100 * value:.1f} %{few}"
