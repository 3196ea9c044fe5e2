"""Sentences at the top of the page of one run."""

from collections.abc import Mapping, Sequence
from typing import Any

from kegnet_pl.reporting.agreement import describe_agreement, warn_of_samples
from kegnet_pl.reporting.names import name_compression, name_source
from kegnet_pl.reporting.results import Row, explain_ceilings, explain_trial, find_last
from kegnet_pl.sources.registry import PRIORS


def write_story(rows: Sequence[Row], config: Mapping[str, Any]) -> list[str]:
    """Return the sentences: the compression, the training of the main student, and its accuracy.

    The first row is the teacher's; the resolved configuration is empty if it is not known.
    """
    teacher, last = rows[0], find_last(rows)
    small = next((row for row in rows if row.method in ("T", "S")), last)
    known = "" if teacher.accuracy is None else f"; accuracy {100 * teacher.accuracy:.2f} % on {teacher.test_set}"
    action = "compressed" if small.method.startswith("T") else "replaced by another network"
    text = [
        f"The teacher {teacher.teacher} ({teacher.parameters:,} parameters{known}) was {action} "
        f"({name_compression(last.student or '')}): the student has {small.parameters:,} parameters, "
        f"{small.compression_ratio:.2f} times fewer, and needs {small.macs:,} multiply-accumulates per sample instead "
        f"of {teacher.macs:,}."
    ]
    student = find_main_student(rows)
    if student is not None and student.samples is not None:
        selection = "with no real data in training or selection."
        if student.selection == "real":
            selection = "and the kept epoch was selected on real validation data."
        text.append(f"It was then trained on {student.samples:,} {_describe_samples(student, config)}, {selection}")
        if student.accuracy is not None and teacher.accuracy is not None:
            text.append(_compare(rows, student, teacher))
    if teacher.accuracy is None:
        text.append("Accuracy was not measured, since there was no test data.")
        text += [*describe_agreement(last), *warn_of_samples(last)]
    return [*explain_trial(rows), *text, *explain_ceilings(rows)]


def find_main_student(rows: Sequence[Row]) -> Row | None:
    """Return the last of the students with the most prior knowledge, None if there is none; ceilings are left out."""
    students = [row for row in rows if row.source is not None and row.quantization is None and not row.is_ceiling]
    # The prior of a mixture names several, joined by " + ".
    return max(reversed(students), key=lambda row: max(map(PRIORS.index, row.source_prior.split(" + "))), default=None)


def _describe_samples(student: Row, config: Mapping[str, Any]) -> str:
    """Return the kind of samples a student was trained on, as text that follows their number."""
    assert student.source is not None
    if not student.source["needs_generators"] or len(student.source["shares"]) > 1:
        return f"samples of {name_source(student.source['title'])} (prior knowledge in them: {student.source_prior})"
    count = config.get("generator", {}).get("count")
    generators = f"{count} generators" if count and count > 1 else "a generator"
    return f"samples of {generators}, trained with the teacher's help"


def _compare(rows: Sequence[Row], student: Row, teacher: Row) -> str:
    """Compare a measured student with the teacher, with itself untrained, and with other sources."""
    assert student.accuracy is not None and teacher.accuracy is not None
    points = 100 * (teacher.accuracy - student.accuracy)
    difference = f"{abs(points):.2f} points {'below' if points >= 0 else 'above'} the teacher"
    others = []
    for row in rows:
        other = row is not student and row is not teacher and row.quantization is None and not row.is_ceiling
        if other and row.accuracy is not None:
            samples = "" if row.source is None else name_source(row.source["title"])
            training = f"trained on samples of {samples}" if samples else "untrained"
            others.append(f"{100 * row.accuracy:.2f} % {training}")
    compared = f" (the same network: {', '.join(others)})" if others else ""
    return f"The {student.name} is correct on {100 * student.accuracy:.2f} %, {difference}{compared}."
