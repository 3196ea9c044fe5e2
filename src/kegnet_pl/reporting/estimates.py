"""The record of networks whose accuracy and agreement are both known: accuracy relative to the teacher's, by agreement.

``python -m reproduction.estimates`` of the repository writes ``estimates.json`` to the folder of this module.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("estimates.json")
"""The record that the package is installed with."""

EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Edges of the ranges of agreement within which networks are compared."""

_FEWEST_NETWORKS, _FEWEST_SETS = 10, 3
"""Minimum number of networks and data sets in a range of agreement that is used for a new network."""

ENOUGH_COVERAGE = 0.9
"""Smallest share of the networks of a data set that must lie within the range of the other data sets."""


@dataclass(frozen=True)
class Known:
    """A network whose accuracy and agreement are both known.

    Attributes:
        dataset: Name of the data set.
        agreement: Mean agreement with the teacher, in [0, 1].
        relative: Accuracy of the network / accuracy of its teacher.
    """

    dataset: str
    agreement: float
    relative: float


@dataclass(frozen=True)
class Estimate:
    """Accuracy relative to the teacher's of the networks of the record with about the same agreement.

    Attributes:
        low: The lowest.
        median: The median.
        high: The highest.
        networks: Number of networks.
        data_sets: Number of their data sets.
    """

    low: float
    median: float
    high: float
    networks: int
    data_sets: int


def estimate(agreement: float, known: Iterable[Known]) -> Estimate | None:
    """Return the estimate from networks with about the same agreement; None if there are too few of them."""
    place = find_range(agreement)
    found = [one for one in known if find_range(one.agreement) == place]
    sets = {one.dataset for one in found}
    if len(found) < _FEWEST_NETWORKS or len(sets) < _FEWEST_SETS:
        return None
    values = [one.relative for one in found]
    return Estimate(min(values), statistics.median(values), max(values), len(found), len(sets))


def find_range(agreement: float) -> int:
    """Return the number of the range of agreement that a network is in, from 0."""
    return sum(agreement >= edge for edge in EDGES[1:-1])


@dataclass(frozen=True)
class Check:
    """Estimates for the networks of one data set by the networks of all others.

    Attributes:
        networks: Number of networks.
        estimated: Number of networks with an estimate.
        error: Mean absolute error of the median; None without an estimate.
        covered: Share of estimates whose range holds the truth; None without an estimate.
    """

    networks: int
    estimated: int
    error: float | None
    covered: float | None


def check(known: Sequence[Known]) -> dict[str, Check]:
    """Estimate the networks of each data set by those of all others; return data set -> result."""
    results = {}
    for dataset in dict.fromkeys(one.dataset for one in known):
        others = [one for one in known if one.dataset != dataset]
        own = [one for one in known if one.dataset == dataset]
        pairs = [(one, estimate(one.agreement, others)) for one in own]
        found = [(one.relative, guess) for one, guess in pairs if guess is not None]
        results[dataset] = Check(
            len(own),
            len(found),
            statistics.mean(abs(truth - guess.median) for truth, guess in found) if found else None,
            statistics.mean(guess.low <= truth <= guess.high for truth, guess in found) if found else None,
        )
    return results


def is_reliable(known: Sequence[Known]) -> bool:
    """Return True if networks of one range of agreement may be used to estimate a new one.

    Each of their data sets must have an estimate from the others, and its range must hold for nearly all networks.
    """
    results = check(known).values()
    covered = [one.covered for one in results if one.covered is not None and one.covered >= ENOUGH_COVERAGE]
    return bool(results) and len(covered) == len(results)


def to_content(known: Sequence[Known]) -> list[dict[str, Any]]:
    """Return a record for JSON: the networks of ranges of agreement that may be used for a new network."""
    ranges = [[one for one in known if find_range(one.agreement) == place] for place in range(len(EDGES) - 1)]
    return [asdict(one) for found in ranges if is_reliable(found) for one in found]


@cache
def read_record(path: Path = RECORD) -> tuple[Known, ...]:
    """Return the networks of a record; none if there is no record."""
    return tuple(Known(**one) for one in json.loads(path.read_text())) if path.exists() else ()


def describe_estimate(agreement: float) -> str:
    """Return a sentence on the accuracy, relative to the teacher's, of a network with this agreement."""
    found = estimate(agreement, read_record())
    here = f"an agreement of {100 * agreement:.0f} %"
    if found is None:
        return (
            f"no estimate of accuracy is given for {here}. Too few networks are known, or their accuracies differ too "
            f"much between data sets (results/estimates.md). Use agreement to compare students of one teacher."
        )
    low, high = 100 * found.low, 100 * found.high
    return (
        f"known networks with about {here} have {low:.0f} to {high:.0f} % of their teachers' accuracy (median "
        f"{100 * found.median:.0f} %; {found.networks} networks of {found.data_sets} data sets, results/estimates.md). "
        f"On other data the accuracy may be different."
    )
