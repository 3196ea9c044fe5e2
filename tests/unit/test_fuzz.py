"""Damaged and hostile inputs: a small draw of what ``python -m reproduction.fuzz`` passes to the readers."""

import json
from pathlib import Path
from unittest import mock

from reproduction import fuzz
from reproduction.paths import ROOT


def test_readers_read_or_refuse_with_a_sentence(tmp_path: Path) -> None:
    found = fuzz.fuzz(200, 1, tmp_path)
    assert found["crashes"] == []
    assert len({*found["read"], *found["refused"]}) == 10, "readers"
    assert sum(found["refused"].values()) > 50 and sum(found["read"].values()) > 20


def test_a_crash_is_found(tmp_path: Path) -> None:
    def fail(draw: object) -> None:
        raise KeyError("x")

    with mock.patch.object(fuzz, "make_readers", lambda _: {"broken": fail, "good": lambda _: None}):
        found = fuzz.fuzz(4, 0, tmp_path)
    assert [(crash["reader"], crash["index"]) for crash in found["crashes"]] == [("broken", 0), ("broken", 2)]
    assert found["read"] == {"good": 2}


def test_the_stored_result_has_no_crash() -> None:
    record = json.loads((ROOT / "results" / "fuzz.json").read_text())
    assert record["inputs"] == fuzz.COUNT and record["crashes"] == []
    assert sum(record["read"].values()) + sum(record["refused"].values()) == fuzz.COUNT
