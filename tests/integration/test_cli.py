"""The command line, as a user types it."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import kegnet_pl
from kegnet_pl.networks import LeNet5
from kegnet_pl.pipeline import cli
from kegnet_pl.pipeline.inventory import find_users
from tests.integration.conftest import FAST, Command, Refused, Start, go


def _seconds_of_processors() -> float:
    """CPU seconds of ended child processes: waiting for a busy core does not count."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_is_quick(command: Command, arguments: list[str]) -> None:
    seconds = []
    for _ in range(3):
        start = _seconds_of_processors()
        done = command(*arguments, new=True)
        seconds.append(_seconds_of_processors() - start)
    assert min(seconds) < 2
    wanted = {
        "--help": ["experiment=", "data=digits", "compression=ratio", "svhn_resnet", "teacher.weights=FILE"],
        "--cfg": ["generator:", "optimizer:", "compression:"],
    }
    assert all(word in done.stdout for word in wanted[arguments[0]])


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_a_reader_that_has_seen_enough_gets_no_traceback(arguments: list[str]) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "kegnet_pl", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait() == -signal.SIGPIPE


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_that_wait_soon_give_their_core_away_unless_told_otherwise(given: dict[str, str], count: str) -> None:
    code = "import os, sys; sys.argv = ['kegnet_pl', '--version']; from kegnet_pl.pipeline.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_WAIT", "GOMP"))}
    done = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == count
    assert re.match(rf"kegnet_pl {re.escape(kegnet_pl.__version__)} \(python .*, torch .*\)\n", done.stdout)


@pytest.mark.parametrize(
    ("typo", "answer"),
    [
        ("generator.epoch=2", "Did you mean generator.epochs?"),
        ("+experiment=svhn", "There is no experiment=svhn. Did you mean experiment=svhn_resnet?"),
        ("generator=imgae", "There is no generator=imgae. Did you mean generator=image?"),
    ],
)
def test_a_typo_lists_what_exists(refused: Refused, typo: str, answer: str) -> None:
    said = refused(typo)
    assert answer in said and "HYDRA_FULL_ERROR" not in said, "our hint stands alone"


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        (["preset=none"], True),
        (["preset=none", "teacher.epochs=3"], True),
        (["experiment=digits_lenet"], True),
        ([], False),
        (["experiment=custom/batch_norm"], False),
        (["preset=none", "generator.steps_per_epoch=1000"], False),
        (["preset=none", "sources=[normal]"], False),
    ],
)
def test_a_network_of_the_user_is_more_than_a_demo(
    refused: Refused, tmp_path: Path, more: list[str], warned: bool
) -> None:
    (tmp_path / "w.pt").touch()  # it is read after the preset is chosen
    said = refused("teacher.weights=w.pt", *more)
    assert ("This is a trial: generators train for 2 epochs of 50 steps" in said) is warned
    chosen = "preset=auto: experiment=custom/image compression=auto (images, no batch norm"
    assert (chosen in said) is (not more)
    assert "Expected time" not in said, "errors come before the estimate"


def test_a_preset_is_chosen_and_saved(command: Command, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))"
    )
    given = [
        "teacher=file",
        f"teacher.path={tmp_path / 'net.py'}",
        "teacher.factory=make",
        "teacher.pretrained=true",
        "data=none",
    ]
    given += ["data.input_shape=[6]", "data.classes=3", "compression.target=1.5", "debug=fast", "student.epochs=1"]
    done = command(*given)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("preset=auto")]
    chosen = "experiment=custom/table compression=auto (rows of features, a dense first layer, 403 parameters, cpu)."
    assert chosen in line and "Compression by " in done.stdout
    assert "Expected time on this machine: about a minute or less." in done.stdout
    assert "student (Correlated)" in done.stdout and "This is a trial" not in done.stdout
    (config,) = tmp_path.rglob(".hydra/config.yaml")
    saved = yaml.safe_load(config.read_text())
    assert (saved["recipe"], saved["sources"], saved["student"]["epochs"]) == ("best", ["correlated"], 1)
    again = command("--config-path", str(config.parent), "--config-name", "config", "resume=require")
    assert "preset=auto" not in again.stdout and "student (Correlated)" in again.stdout, (
        "the saved configuration is complete"
    )


def test_a_plan_of_the_paper_is_for_its_own_networks(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine" / "teacher").mkdir(parents=True)
    (tmp_path / "mine" / "teacher" / "mynet.yaml").write_text("defaults: [custom, _self_]\nname: mynet\n")
    network = "teacher.network._target_=torch.nn.Identity"
    said = refused("--config-dir", str(tmp_path / "mine"), "teacher=mynet", network, "compression=option1")
    assert "a plan of compression=option1 for teacher=mynet, but it has plans for lenet5, resnet14, mlp" in said
    assert "compression=ratio" in said


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["recipe=fast"], "Expected an experiment that has a preset for recipe=fast, but got none."),
        (["schedule=batch_norm", "student.jitter=3"], "Use experiment=custom/batch_norm."),
        (["schedule=batch_norm", "student.jitter=3"], "Use student.noise_std=3."),
        (["student.network=lenet5"], "To choose a group, write student=..., for example student=lenet5."),
        (["trainer.num_nodes=2"], "Expected torchrun or srun to start trainer.devices=1 processes on each"),
        (["+trainer.max_epochs=3"], "Expected no setting `trainer.max_epochs`: set teacher.epochs, generator.epochs"),
        (["data=files", "data.input_shape=[3]", "data.classes=2", "data.test=no.npz", "generator=dense", "teacher=mlp"],
         "Expected a file at no.npz, but there is none. Check data.test"),
        (["seed=-1", "student.epochs=0"], "Expected `seed` to be a whole number of at least 0, but got -1.\n"),
        (["seed=-1", "student.epochs=0"], "Expected `student.epochs` to be a whole number of at least 1, but got 0."),
        (["data=none"], "Expected a value for `data.input_shape`"),
        (["teacher.weights=nowhere.pt"], "Expected a weight file at nowhere.pt"),
        (["data=shuttle", "teacher=mlp", "generator=dense", "compression=option1", "data.root=here"], "shuttle.trn"),
        (["store=/proc/nowhere"], "Expected to write to the store /proc/nowhere"),
        (["trainer.precision=16-mixed"], "bf16-mixed on a CPU"),
        (["teacher=torchvision"], "Expected a value for `teacher.arch`, but got none. Add teacher.arch=... to the"),
        (["seed=0,1"], "seed=0,1 has several values. Add -m to run one job for each"),
        (["data=none", "data.input_shape=[32,32]", "data.classes=10", "teacher=lenet5", "teacher.weights=w.pt"],
         "Expected the teacher LeNet5 to accept samples of shape (32, 32)"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_clear_line(refused: Refused, arguments: list[str], answer: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    assert answer in refused(*arguments)
    assert not (tmp_path / "outputs" / "runs").exists(), "a refused command leaves no folder of a run"


def test_an_option_that_does_not_exist(command: Command) -> None:
    done = command("--epochs", "3", expect=2)
    assert done.stderr.strip().startswith("Error: There is no option --epochs. Settings have no dashes")


@pytest.mark.parametrize(("more", "said"), [([], True), (["data=digits"], False), (["experiment=digits_lenet"], False)])
def test_a_command_without_data_is_named(refused: Refused, tmp_path: Path, more: list[str], said: bool) -> None:
    (tmp_path / "w.pt").touch()
    printed = refused("teacher.weights=w.pt", *more)
    assert ("The command names no data, so the test data are the digits" in printed) is said


def test_a_failed_command_prints_one_line(command: Command) -> None:
    done = command("seed=-1", "generator.seed=0", expect=1)
    assert done.stderr.strip() == "Error: Expected `seed` to be a whole number of at least 0, but got -1."


def test_old_and_new_spellings_are_one_configuration(command: Command) -> None:
    new = command("experiment=paper/svhn_resnet", "debug=fast", "--cfg", "job").stdout
    assert command("recipe=paper", "+experiment=svhn_resnet", "+debug=fast", "--cfg", "job").stdout == new


@pytest.mark.slow
def test_default_run_shows_everything(command: Command, tmp_path: Path) -> None:
    done = command(FAST, "logger=[wandb,tensorboard]", draw=True)
    text = done.stdout
    assert re.match(
        r"kegnet_pl [\d.]+: data digits, teacher lenet5, student 8x, sources normal, kegnet, kegnet \+ procedural, "
        r"seed 0, device cpu\n\[1/7\] teacher: started\n",
        text,
    )
    assert "[3/7] generators: started" in text and "[7/7] evaluation: finished in" in text
    for word in ("teacher", "student (normal noise)", "student (KegNet)", "accuracy", "ratio", "MACs", "seconds"):
        assert word in text
    # A log file gets lines, not a bar that is drawn again and again.
    assert "\x1b[" not in text and "\r" not in text
    for noise in ("Tip:", "does not have many workers", "GPU available", "deprecated"):
        assert noise not in text + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    (results,) = tmp_path.glob("outputs/runs/*/results.json")
    shown = re.search(r"results\s+(\S+)", text)
    assert shown is not None and tmp_path / shown[1] == results
    assert len(json.loads(results.read_text())) == 5

    store = tmp_path / "outputs" / "debug_store"
    assert len(list(store.glob("*/logs/**/metrics.csv"))) == 1 + 2 + 3 + 5  # teacher, generators, students, evaluations
    fits = {
        path.parent.relative_to(results.parent / "tensorboard").as_posix()
        for path in results.parent.rglob("*.tfevents.*")
    }
    students = {f"student/{name}" for name in ("normal", "kegnet", "kegnet50_procedural50")}
    assert fits == {"teacher", "generators", "result"} | students
    assert len(list(results.parent.glob("wandb/offline-run-*"))) == 1, "offline by itself"


@pytest.mark.parametrize(
    "arguments", [["hydra.run.dir=/proc/nowhere"], ["-m", "seed=0,1", "hydra.sweep.dir=/proc/nowhere"]]
)
def test_a_folder_that_cannot_be_written_is_named(command: Command, arguments: list[str]) -> None:
    done = command(*arguments, FAST, expect=1)
    (line,) = done.stderr.strip().splitlines()
    assert re.fullmatch(r"Error: Expected to write results to /proc/nowhere, but got: .*dir=FOLDER, or run .*", line)


def test_a_run_that_fails_leaves_its_reason(command: Command, tmp_path: Path) -> None:
    command(FAST, "student.samples=3", "hydra.run.dir=here", expect=1)
    failure = json.loads((tmp_path / "here" / "failure.json").read_text())
    assert failure["error"].startswith("Expected `student.samples` to be a multiple") and failure["job"] is None


@pytest.mark.slow
def test_metric_names(command: Command, tmp_path: Path) -> None:
    command(FAST, "sources=[kegnet]", "generator.objective.diversity.weight=1", "student.selection=synthetic")
    names: dict[str, set[str]] = {}
    for file in tmp_path.glob("outputs/debug_store/*/logs/**/metrics.csv"):
        stage = file.relative_to(tmp_path).parts[2].split("-")[0]
        names.setdefault(stage, set()).update(file.read_text().splitlines()[0].split(","))
    common = {"epoch", "step"}
    losses, of_student = ({"train/loss", f"train/{name}", "train/grad_norm"} for name in ("accuracy", "agreement"))
    terms = {"train/loss_classifier", "train/loss_decoder", "train/loss_diversity"}
    samples = {"samples/confidence", "samples/entropy", *(f"samples/confidence_{label}" for label in range(10))}
    assert names == {
        "teacher": common | losses,
        "generators": common | {f"generator_{i}/{name}" for i in range(2) for name in losses | terms | samples},
        "student": common | of_student | {"val/loss", "val/accuracy"},
        "evaluation": {"step", "test/accuracy", "parameters", "macs", "compression_ratio"},
    }


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_through_the_command_line(command: Command, tmp_path: Path) -> None:
    """They find the generators of one process, and start where a student is to be trained."""
    torch.save(LeNet5().state_dict(), tmp_path / "net.pt")
    given = ["sources=[kegnet]", "teacher.weights=net.pt", f"store={tmp_path / 'store'}", "preset=none"]
    with contextlib.chdir(tmp_path):
        go(tmp_path, *given, "student.epochs=1")
    done = command(FAST, *given, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert "generators: found" in done.stdout and done.stdout.count("student (KegNet): finished") == 1
    (results,) = tmp_path.glob("outputs/runs/*/results.json")
    assert len(json.loads(results.read_text())) == 3


def test_bfloat16(command: Command, tmp_path: Path) -> None:
    command(FAST, "trainer.precision=bf16-mixed")
    (results,) = tmp_path.glob("outputs/runs/*/results.json")
    rows = json.loads(results.read_text())
    assert {row["precision"] for row in rows} == {"bf16-mixed"}
    assert all(row["accuracy"] is not None for row in rows)


@pytest.mark.ddp
def test_a_sweep_over_several_processes_is_refused(command: Command) -> None:
    several = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    done = command("-m", FAST, *several, "seed=0,1", expect=1)
    assert done.stderr.count("one process per job in a sweep") == 1, "once, before any job starts"
    swept = command("-m", FAST, "trainer=cpu,ddp", "sources=[]", "trainer.accelerator=cpu", expect=1)
    assert "1 of 2 runs finished" in swept.stdout and "one process per job in a sweep" in swept.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_keeps_finished_stages_and_says_how_to_go_on(
    number: signal.Signals, code: int, start: Start, tmp_path: Path
) -> None:
    running = start(FAST, "sources=[kegnet]", "generator.epochs=500", "teacher.epochs=1")
    deadline = time.monotonic() + 120
    begun = tmp_path / "outputs" / "debug_store"
    while not list(begun.glob(".generators-*/checkpoints/generator_0/resume.ckpt")):
        assert time.monotonic() < deadline and running.process.is_alive()
        time.sleep(0.1)
    os.kill(running.process.pid, number)
    err = running.finish(code, timeout=60).stderr
    assert "Run the same command again" in err and "Traceback" not in err
    finished = sorted(path.name for path in begun.glob("[!.]*"))
    assert [name.split("-")[0] for name in finished] == ["compression", "teacher"]
    (used,) = find_users(begun, [tmp_path / "outputs" / "runs"]).values()
    assert sorted(used) == finished, "the stages of a stopped run have a user"


def test_ctrl_c_while_an_object_is_deleted_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deleted:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", cli.interrupt_again)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Deleted()
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_outside_of_a_fit_says_how_to_continue(start: Start, tmp_path: Path) -> None:
    """Lightning handles the signal only in a fit."""
    running = start(FAST, "compression=ratio", "compression.target=4", "compression.samples=200000", "teacher.epochs=1")
    deadline = time.monotonic() + 120
    begun = tmp_path / "outputs" / "debug_store"
    while not list(begun.glob(".compression-*")):
        assert time.monotonic() < deadline and running.process.is_alive()
        time.sleep(0.1)
    os.kill(running.process.pid, signal.SIGTERM)
    err = running.finish(143, timeout=60).stderr
    assert "Run the same command again" in err and "Traceback" not in err


@pytest.mark.slow
def test_two_commands_at_once_build_every_stage_once(start: Start, tmp_path: Path) -> None:
    running = [start(FAST, "sources=[kegnet]", "teacher.epochs=5") for _ in range(2)]
    texts = [one.finish().stdout for one in running]
    for stage in ("teacher", "generators", "student (KegNet)"):
        assert sum(f"{stage}: finished" in text for text in texts) == 1, texts
    assert len(list(tmp_path.glob("outputs/runs/*/results.json"))) == 2


def test_ctrl_c_while_hydra_composes_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Hydra reports an exception that a library has made of it as its own, with a traceback."""

    def compose() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        sys.stderr.write("Traceback (most recent call last): ...\n")
        raise SystemExit(1)

    monkeypatch.setattr(cli, "_run", compose)
    monkeypatch.setattr(cli, "_entered", False)
    monkeypatch.setattr(cli, "_interrupted", False)
    monkeypatch.setattr(sys, "argv", ["kegnet_pl"])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert capfd.readouterr().err.strip() == "Stopped before the run began."
