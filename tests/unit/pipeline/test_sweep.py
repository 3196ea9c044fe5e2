"""Names of sweeps."""

import pytest
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from kegnet_pl.pipeline import sweep
from kegnet_pl.pipeline.sweep import sweep_name


def test_the_name_says_what_is_swept_and_is_the_same_again() -> None:
    overrides = ["+experiment=svhn_resnet", "compression=option1,option2", "seed=range(3)", "sources=[uniform,kegnet]"]
    name = sweep_name(overrides)
    assert name.startswith("svhn_resnet-compression-seed-")
    assert name == sweep_name(overrides)
    assert name != sweep_name([*overrides, "generator.count=2"])


@pytest.mark.parametrize(
    ("override", "swept"),
    [
        ("seed=0,1", True),
        ("seed=range(0,5)", True),
        ("compression=glob(*)", True),
        ("sources=[uniform,kegnet]", False),
        ("sources=[kegnet],[normal]", True),
        ("trainer.devices=1", False),
        ("teacher.weights='a,b.pt'", False),
    ],
)
def test_what_is_swept(override: str, swept: bool) -> None:
    key = override.split("=", 1)[0]
    assert (f"{key}-" in sweep_name([override])) is swept


@pytest.mark.parametrize("sweeps", [True, False])
def test_the_configuration_of_a_finished_job_is_dropped(monkeypatch: pytest.MonkeyPatch, sweeps: bool) -> None:
    monkeypatch.setattr(sweep, "in_sweep", lambda: sweeps)
    job = JobReturn(cfg=OmegaConf.create({"a": 1}), hydra_cfg=OmegaConf.create({"b": 1}))
    sweep.SweepCallback().on_job_end(OmegaConf.create(), job)
    assert (job.cfg is None) == (job.hydra_cfg is None) == sweeps
