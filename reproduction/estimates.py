"""The relation of agreement on synthetic samples to accuracy: ``python -m reproduction.estimates``.

Reads all rows in ``results/*.jsonl`` that have both, and writes ``results/estimates.md``, ``results/estimates.json``
and the record that the package uses, ``src/kegnet_pl/reporting/estimates.json``. ``--add FOLDER`` first adds the runs
of finished sweeps to ``results/agreement.jsonl``.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from kegnet_pl.api.agreement import OF_IMAGES, OF_ROWS
from kegnet_pl.reporting import estimates
from kegnet_pl.reporting.agreement import join
from kegnet_pl.reporting.estimates import EDGES, Known
from kegnet_pl.reporting.results import Row
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.environment import display_path
from reproduction.paths import ROOT
from reproduction.records import add_run, read_runs
from reproduction.runner import say

_FEWEST = 5
"""Fewest networks of a rank correlation."""


@dataclass(frozen=True)
class Measured:
    """A network with its accuracy relative to the teacher's, and its agreement by source.

    Attributes:
        known: Its data set, mean agreement and relative accuracy.
        sources: Source -> agreement; sources that made the network are left out.
        own: The same for those that made it.
    """

    known: Known
    sources: dict[str, float]
    own: dict[str, float]


def read_measured(results: Path) -> list[Measured]:
    """Return the networks of all stored runs with accuracy and agreement, each once."""
    found = {}
    for path in sorted(results.glob("*.jsonl")):
        for rows in read_runs(path).values():
            for row in map(Row.from_dict, rows):
                measured = _measured(row)
                if measured is not None:
                    found[row.fingerprint] = measured
    return list(found.values())


def _measured(row: Row) -> Measured | None:
    if row.accuracy is None or not row.teacher_accuracy or row.agreement is None or row.is_ceiling:
        return None
    sources = row.agreement["sources"]
    others, own = (
        {name: float(one["agreement"]) for name, one in sources.items() if one["own"] == made} for made in (False, True)
    )
    # The mean of a row leaves out what made other networks of its run, too, and is over all sources of the run.
    usual = [value for name, value in others.items() if name in (OF_IMAGES if "waves" in sources else OF_ROWS)]
    if not usual:
        return None
    known = Known(row.dataset, round(statistics.mean(usual), 4), round(row.accuracy / row.teacher_accuracy, 4))
    return Measured(known, others, own)


def correlate(networks: Sequence[Measured], source: str | None, own: bool = False) -> tuple[float, int] | None:
    """Return the rank correlation of agreement with relative accuracy, and the number of networks.

    Args:
        networks: Networks of one data set.
        source: Name of the source; None for the mean over sources that did not make the network.
        own: True to take agreement on the source also where it made the network.
    """
    pairs = []
    for one in networks:
        found = one.sources | (one.own if own else {})
        value = one.known.agreement if source is None else found.get(source)
        if value is not None:
            pairs.append((value, one.known.relative))
    if len(pairs) < _FEWEST:
        return None
    correlation = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return (correlation, len(pairs)) if correlation == correlation else None  # not defined if all are equal


def render(networks: Sequence[Measured]) -> str:
    """Return the page."""
    return "\n".join(_lines(networks)) + "\n"


def _lines(networks: Sequence[Measured]) -> Iterator[str]:
    known = [one.known for one in networks]
    by_set = {
        name: [one for one in networks if one.known.dataset == name] for name in sorted({k.dataset for k in known})
    }
    sources = sorted({name for one in networks for name in (*one.sources, *one.own)})
    yield from [
        "# Agreement on synthetic samples, and accuracy",
        "",
        "Agreement is the share of synthetic samples to which a student and its teacher give the same class, mean over",
        "the teacher's classes. It needs no data. The networks are those in `results/*.jsonl` with both agreement and",
        "test accuracy, without the ceilings on real data. Relative accuracy is the accuracy of the student / that of",
        "the teacher. `python -m reproduction.estimates` writes this page.",
        "",
        "## Order of students",
        "",
        "The table has Spearman's rank correlation of agreement with relative accuracy, within a data set. The numbers",
        "of networks are in brackets. Networks that were compressed or trained with samples of a source are excluded,",
        "except in the columns `also own`. `mean` is over the default sources that did not make the network",
        f"({join(OF_IMAGES)} for images; {join(OF_ROWS)} for rows).",
        "",
        "| data | mean | " + " | ".join(f"{name} | {name}, also own" for name in sources) + " |",
        "| --- | ---: |" + " ---: |" * (2 * len(sources)),
    ]  # fmt: skip
    columns = [(None, False), *((source, own) for source in sources for own in (False, True))]
    table = {name: [correlate(members, *column) for column in columns] for name, members in by_set.items()}
    for name, cells in table.items():
        yield f"| {name} | {' | '.join(map(_show, cells))} |"
    medians = [[one[0] for one in column if one is not None] for column in zip(*table.values(), strict=True)]
    yield f"| median | {' | '.join(f'{statistics.median(values):.2f}' if values else '' for values in medians)} |"
    yield from [
        "",
        "## Accuracy from agreement",
        "",
        "For each data set, the estimate comes from networks of all other data sets with a mean agreement in the same",
        "range. There must be at least ten networks of three data sets. The error is that of their median. Covered",
        "is the share of networks between their lowest and highest relative accuracy.",
        "",
        "| data | networks | with an estimate | mean error | covered |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, result in estimates.check(known).items():
        error = "" if result.error is None else f"{100 * result.error:.1f} points"
        covered = "" if result.covered is None else f"{100 * result.covered:.0f} %"
        yield f"| {name} | {result.networks} | {result.estimated} | {error} | {covered} |"
    yield from [
        "",
        "A run without test data prints the range for its agreement only if the range is reliable. This requires",
        f"networks of four or more data sets. For each of them, {100 * estimates.ENOUGH_COVERAGE:.0f} % of the",
        "networks must be within the range of the other data sets.",
        "",
        "| agreement | networks | data sets | lowest | median | highest | reliable |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for place, (low, high) in enumerate(pairwise(EDGES)):
        found = [one for one in known if estimates.find_range(one.agreement) == place]
        if found:
            values = [one.relative for one in found]
            figures = " | ".join(f"{100 * f(values):.1f} %" for f in (min, statistics.median, max))
            reliable = "yes" if estimates.is_reliable(found) else "no"
            yield (
                f"| {100 * low:.0f} to {100 * high:.0f} % | {len(found)} | {len({one.dataset for one in found})} | "
                f"{figures} | {reliable} |"
            )


def _show(found: tuple[float, int] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} ({found[1]})"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.estimates", description=__doc__)
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of finished sweeps")
    options = parser.parse_args()
    results = ROOT / "results"
    for folder in options.add:
        for path in sorted(folder.glob("*/results.json")):
            add_run(results / "agreement.jsonl", f"{folder.name}-{path.parent.name}", path)
    networks = read_measured(results)
    if not networks:
        parser.error(f"Expected rows with accuracy and agreement in {display_path(results)}/*.jsonl, but found none.")
    known = [one.known for one in networks]
    content: dict[str, Any] = {
        "checks": {name: asdict(result) for name, result in estimates.check(known).items()},
        "networks": [asdict(one) for one in networks],
    }
    atomic_write(results / "estimates.json", json.dumps(content, indent=1) + "\n")
    atomic_write(results / "estimates.md", render(networks))
    atomic_write(estimates.RECORD, json.dumps(estimates.to_content(known), indent=1) + "\n")
    say(f"Written: {display_path(results / 'estimates.md')}, {display_path(estimates.RECORD)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
