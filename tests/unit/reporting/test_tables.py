"""Tables of results on the terminal."""

import dataclasses

import pytest

from kegnet_pl.reporting.results import TRIAL, explain_ceilings, explain_validity, find_last, list_warnings
from kegnet_pl.reporting.run_story import write_story
from kegnet_pl.reporting.tables import explain_losses, explain_names, explain_quantization, explain_speed, find_best
from tests.unit.reporting.rows import TEACHER, quantized, student


def test_a_student_below_where_it_began_is_told_with_advice() -> None:
    rows = [TEACHER, student(0.65, method="T", samples=None), student(0.7, method="T+Uniform"), student(0.25)]
    (line,) = explain_losses(rows, "batch", batch_norm=True)
    assert line.startswith("student (KegNet) is 40.0 points below the network before training.")
    assert "student.norm=frozen" in line and "student.norm=adapt student.shuffle=true" in line


@pytest.mark.parametrize(("norm", "batch_norm"), [("frozen", True), ("adapt", True), ("batch", False)])
def test_advice_is_for_batch_norm_that_has_other_statistics(norm: str, batch_norm: bool) -> None:
    rows = [TEACHER, student(0.65, method="T", samples=None), student(0.25)]
    assert explain_losses(rows, norm, batch_norm) == [
        "student (KegNet) is 40.0 points below the network before training."
    ]


@pytest.mark.parametrize("name", ["S", "T"])
def test_nothing_is_said_where_nothing_is_lost_or_known(name: str) -> None:
    untrained = student(0.65 if name == "S" else None, method=name, samples=None)
    assert explain_losses([TEACHER, untrained, student(0.25, method=f"{name}+KegNet")], "batch", batch_norm=True) == []
    assert explain_losses([TEACHER, student(0.6, method="T"), student(0.6)], "batch", batch_norm=True) == []


def test_a_ceiling_is_never_the_best_and_never_the_result_of_a_run() -> None:
    untrained, kegnet, ceiling = student(0.65, method="T"), student(0.7), student(0.85, method="T+Real")
    rows = [TEACHER, untrained, kegnet, ceiling]
    assert [row.is_ceiling for row in rows] == [False, False, False, True]
    assert find_best(rows) is find_last(rows) is kegnet
    alone = [TEACHER, untrained, ceiling]
    assert find_best(alone) is find_last(alone) is untrained
    assert explain_ceilings(rows[:3]) == [] and len(explain_ceilings([*rows, ceiling])) == 1


def test_a_ceiling_is_one_with_any_compression() -> None:
    fields = {"compression_source": {"prior": "procedural"}}
    ceiling = student(0.85, method="T+Real", **fields)
    assert ceiling.prior == "procedural + real data" and ceiling.is_ceiling
    assert not student(0.85, method="T", **fields).is_ceiling


def test_a_ceiling_that_loses_gets_no_advice_on_synthetic_samples() -> None:
    rows = [TEACHER, student(0.65, method="T", samples=None), student(0.25, method="T+Real")]
    assert explain_losses(rows, "batch", batch_norm=True) == [
        "student (real data) is 40.0 points below the network before training."
    ]


def test_a_network_in_int8_is_never_the_best_and_never_the_result_of_a_run() -> None:
    untrained, kegnet = student(0.65, method="T"), student(0.7)
    rows = [TEACHER, untrained, kegnet, quantized(TEACHER), quantized(dataclasses.replace(kegnet, accuracy=0.8))]
    assert find_best(rows) is find_last(rows) is kegnet
    assert write_story(rows, {}) == write_story(rows[:3], {}), "other networks are compared in float32"
    less = [*rows[:3], quantized(dataclasses.replace(kegnet, accuracy=0.5))]
    assert explain_losses(less, "batch", batch_norm=True) == []


def test_the_prior_covers_the_samples_of_the_calibration() -> None:
    kegnet = student(0.7)
    assert quantized(kegnet).prior == "teacher + procedural" and quantized(TEACHER).prior == "procedural"
    assert quantized(kegnet, source=None).prior == "teacher" and quantized(TEACHER, source=None).prior == ""
    ceiling = quantized(kegnet, source="Real")
    assert ceiling.is_ceiling and not kegnet.is_ceiling
    (line,) = explain_ceilings([kegnet, ceiling])
    assert line.startswith("student (KegNet), int8 is not a data-free result: it was calibrated on real data")


def test_what_int8_means_is_said() -> None:
    rows = [TEACHER, student(0.7)]
    assert explain_quantization(rows) == []
    (line,) = explain_quantization([*rows, quantized(TEACHER)])
    assert line.startswith("int8: weights and activations, calibrated on 256 samples of Procedural; ONNX files for ")
    (line,) = explain_quantization([*rows, quantized(TEACHER, source=None)])
    assert line.startswith("int8: weights; ONNX files")
    float32 = dataclasses.replace(TEACHER, size=299)
    _, line = explain_quantization([float32, rows[1], quantized(float32)])
    assert line.startswith("teacher, int8: the file is not smaller than in float32")


def test_the_speed_is_that_of_float32() -> None:
    latency = {"device": "CPU", "threads": 1, "batches": {"1": {"ms": 1.0, "spread": 0.1, "speedup": 0.5}}}
    slow = dataclasses.replace(student(0.7), latency=latency)
    fast = {"1": {"ms": 1.0, "spread": 0.1, "speedup": 2.0}}
    rows = [dataclasses.replace(TEACHER, latency=latency), slow]
    small = dataclasses.replace(quantized(slow), latency=latency | {"batches": fast})
    assert explain_speed([*rows, small]) == explain_speed(rows) and "slower than its teacher" in explain_speed(rows)[1]


def test_times_that_vary_are_named_and_not_called_slow() -> None:
    steady, noisy = {"ms": 1.0, "spread": 0.5, "speedup": 0.5}, {"ms": 1.0, "spread": 0.51, "speedup": 0.25}
    latency = {"device": "CPU", "threads": 1, "batches": {"1": noisy, "64": steady}}
    calm = latency | {"batches": {"1": steady, "64": steady}}
    slow = dataclasses.replace(student(0.7), latency=latency)
    _, line, last = explain_speed([dataclasses.replace(TEACHER, latency=calm), slow])
    assert line.startswith("Speed-ups at batch size 1 are not reliable") and "slower" not in line
    assert "0.50x at batch size 64." in last and "0.25x" not in last
    rows = [dataclasses.replace(TEACHER, latency=latency), dataclasses.replace(slow, latency=calm)]
    assert "batch size 1 are not reliable" in explain_speed(rows)[1], "the teacher's times count, too"


def test_a_trial_is_marked_once_in_every_text() -> None:
    rows = [dataclasses.replace(TEACHER, warnings=[TRIAL]), student(0.7, warnings=[TRIAL, "It is slow."])]
    assert explain_validity(rows) == [TRIAL] == write_story(rows, {})[:1]
    assert list_warnings(rows) == [("student (KegNet)", "It is slow.")]
    assert TRIAL not in [*explain_validity([TEACHER, student(0.7)]), *write_story([TEACHER, student(0.7)], {})]


def test_a_warning_about_several_networks_is_one() -> None:
    rows = [TEACHER, student(0.7, warnings=["a", "b"]), student(0.6, method="T+Normal", warnings=["b"])]
    assert list_warnings(rows) == [("student (KegNet)", "a"), ("student (KegNet); student (normal noise)", "b")]


def test_names_and_seconds_are_explained() -> None:
    small = student(0.8, method="T", stage_seconds={"teacher": 3.0, "compression": 2.0, "evaluation": 9.0})
    trained = student(0.8, stage_seconds={"teacher": 3.0, "compression": 2.0, "generators": 4.0, "student": 1.0})
    assert [row.seconds_from_teacher for row in (TEACHER, small, trained)] == [3.0, 2.0, 7.0]
    ends = ". Seconds: all stages from the teacher to the network."
    assert explain_names([TEACHER, small]) == [
        f"compressed, untrained: the network before training (T in files and options){ends}"
    ]
    assert explain_names([TEACHER, small, trained]) == [
        f"compressed, untrained: the network before training (T in files and options); student (NAME): the same "
        f"network, trained on samples of NAME (T+NAME){ends}"
    ]
    other = student(0.8, method="S")
    assert explain_names([TEACHER, other]) == [f"untrained: the network before training (S in files and options){ends}"]


def test_the_remedy_of_a_slow_network_is_that_of_its_compression() -> None:
    latency = {"device": "CPU", "threads": 1, "batches": {"1": {"ms": 1.0, "spread": 0.1, "speedup": 0.5}}}
    slow = dataclasses.replace(student(0.7), latency=latency, compression="pruning")
    teacher = dataclasses.replace(TEACHER, latency=latency)
    line = explain_speed([teacher, slow])[1]
    assert line.endswith("To choose channels by measured time, set compression.by=latency.")
    line = explain_speed([teacher, dataclasses.replace(slow, compression="tucker")])[1]
    assert "choose ranks" in line and "compression.fit=function" in line and "kegnet_pl.benchmark RUN" in line
