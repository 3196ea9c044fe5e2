"""Two machines, which are two processes here: torchrun and SLURM start them, and they share a store."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kegnet_pl.pipeline.sample_monitor import SAMPLES
from kegnet_pl.reporting.figures import read_curves
from tests.integration.conftest import FAST, Start, go

RUN = [
    FAST, "sources=[kegnet]", "generator.epochs=12", "generator.processes=spread", "latency.batch_sizes=[1]",
    "agreement.sources=[waves]", "student.optimizer.lr=auto",
]  # fmt: skip
MACHINES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def stop_while_generators_train(folder: Path, environment: dict[str, str]) -> None:
    """Start a run by torchrun on two machines, and kill both after the first epochs of both generators."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                "--master-addr=127.0.0.1", f"--master-port={free_port()}"]  # fmt: skip
    with (folder / "output").open("w") as output:
        running = [
            subprocess.Popen(
                [*torchrun, f"--node-rank={machine}", "-m", "kegnet_pl", *RUN, *MACHINES], cwd=folder, env=environment,
                stdout=output, stderr=output, start_new_session=True,
            )
            for machine in range(2)
        ]  # fmt: skip
    workers: list[int] = []
    try:
        deadline = time.monotonic() + 120
        first = "outputs/debug_store/.generators-*/checkpoints/generator_[01]/resume.ckpt"
        while len(list(folder.glob(first))) < 2:
            text = (folder / "output").read_text()
            assert time.monotonic() < deadline and all(one.poll() is None for one in running), text
            time.sleep(0.1)
    finally:
        for one in running:  # the workers of torchrun are in sessions of their own
            children = Path(f"/proc/{one.pid}/task/{one.pid}/children")
            workers += [int(pid) for pid in children.read_text().split()] if children.exists() else []
        for pid in [*workers, *(one.pid for one in running)]:
            os.kill(pid, signal.SIGKILL)
        for one in running:
            one.wait()


def slurm(machine: int, port: str) -> dict[str, str]:
    """Return the variables of a task that srun starts on a machine of two."""
    numbers = {"PROCID": machine, "NODEID": machine, "LOCALID": 0, "NTASKS": 2, "STEP_NUM_TASKS": 2, "NNODES": 2}
    names = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "kegnet", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    return names | {f"SLURM_{name}": str(number) for name, number in numbers.items()}


@pytest.mark.slow
@pytest.mark.ddp
def test_two_machines_share_a_run_that_is_killed_and_continued(
    start: Start, tmp_path: Path, environment: dict[str, str]
) -> None:
    environment = environment | {"GLOO_SOCKET_IFNAME": "lo"}
    stop_while_generators_train(tmp_path, environment)
    port = free_port()
    machines = [start(*RUN, *MACHINES, environment=environment | slurm(number, port)) for number in range(2)]
    first, second = (machine.finish().stdout for machine in machines)
    assert "teacher: found" in first and "generators: each of 2 processes trains its own (1, 1)" in first
    assert "generators: resumed after epoch" in first and "student (KegNet): finished" in first
    assert second == "", "one machine speaks"
    folders = list((tmp_path / "outputs/runs").iterdir())
    assert len(folders) == 2, "one folder for each start"
    assert len(list(tmp_path.glob("outputs/runs/*/results.json"))) == 1

    (teacher,) = tmp_path.glob("outputs/debug_store/teacher-*/network.safetensors")
    go(tmp_path / "one", *RUN, "student.epochs=1", f"teacher.weights={teacher}")
    (alone,), (together,) = (folder.glob("generators-*") for folder in (tmp_path / "one/store", teacher.parent.parent))
    files = sorted(path.name for path in alone.glob("*.safetensors"))
    assert len(files) == 4
    for name in files:
        one, two = load_file(alone / name), load_file(together / name)
        assert all(value.equal(two[key]) for key, value in one.items()), f"{name} differs from that of one process"
    assert sorted(path.name for path in together.glob("sheets/*")) == ["generator_0", "generator_1"]
    for name in ("generator_0", "generator_1"):
        assert len(read_curves(together / "logs" / name)[f"{name}/train/loss"]) == 12
    costs = [
        json.loads((folder / "manifest.json").read_text())["costs"]["samples_made"] for folder in (alone, together)
    ]
    epoch = 2 * 32 + SAMPLES * 10
    assert abs(costs[0] - costs[1]) <= 2 * epoch, "a killed process loses at most its last epoch"
