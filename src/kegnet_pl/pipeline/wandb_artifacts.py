"""Artifacts of Weights & Biases: the networks of finished stages."""

from collections.abc import Sequence
from typing import Any

from kegnet_pl.pipeline.store import Stage

ARTIFACTS = ("teacher", "compression", "generators", "student")
"""Stages whose files become W&B artifacts."""


def record_artifact(run: Any, stage: Stage, parents: Sequence[Stage], *, used: bool) -> None:
    """Log a stage's files as an artifact of type ``model``, with the artifacts of its parents.

    The client refuses ``use_artifact`` offline; the artifact's metadata and the run's configuration name the parents.

    Args:
        run: The run.
        stage: The stage.
        parents: The stages that it read.
        used: True if the run has not built the stage: the artifact is an input of the run.
    """
    import wandb

    names = {parent.name: f"{parent.name}-{parent.fingerprint}" for parent in parents if parent.name in ARTIFACTS}
    artifact = wandb.Artifact(
        f"{stage.name}-{stage.fingerprint}",
        type="model",
        metadata={
            "stage": stage.name, "fingerprint": stage.fingerprint, "parents": names, "metrics": stage.metrics,
            "seconds": stage.seconds, "command": stage.manifest["command"],
        },
    )  # fmt: skip
    for path in sorted(path for path in stage.folder.iterdir() if path.is_file()):
        # Finished stages do not change, so wandb need not copy the file to a folder outside the run's.
        artifact.add_file(str(path), policy="immutable")
    if used and not run.offline:
        run.use_artifact(artifact)
    else:
        run.log_artifact(artifact)
