"""The dashboard of a W&B project: ``python -m kegnet_pl.dashboard``."""

import argparse
import os
import sys
from typing import Any

from kegnet_pl.runtime.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line with arguments, or those of this process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kegnet_pl.dashboard",
        description="Save a W&B workspace with the sections result, teacher, generators, samples, students and sweep.",
    )
    parser.add_argument(
        "--project",
        default=os.environ.get("WANDB_PROJECT", "kegnet_pl"),
        help="logger.wandb.project (default: %(default)s)",
    )
    parser.add_argument("--entity", help="logger.wandb.entity: a team (default: your account)")
    parser.add_argument(
        "--generators",
        type=int,
        default=10,
        help="generators per run whose samples are displayed (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        workspace = save(options.project, options.entity, options.generators)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"dashboard     {workspace.url}")  # noqa: T201
    return 0


def save(project: str, entity: str | None = None, generators: int = 10) -> Any:
    """Save the dashboard to W&B.

    Args:
        project: W&B project.
        entity: User or team; None for the default of the key.
        generators: Number of generators per run whose samples are displayed.

    Returns:
        The saved ``wandb_workspaces.workspaces.Workspace``, which has a ``url``.

    Raises:
        UserError: If wandb-workspaces is not installed, there is no key, or W&B does not answer.
    """
    from kegnet_pl.pipeline.wandb_runs import has_wandb_key
    from kegnet_pl.reporting.workspace import make_workspace

    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(
            "Expected the package wandb-workspaces, but it is not installed: pip install '.[dashboard]'"
        ) from error
    if not has_wandb_key():
        raise UserError(
            "Expected a W&B key, but got none. Run wandb login (or set WANDB_API_KEY), then run this command again."
        )
    import requests
    import wandb

    try:
        entity = entity or str(wandb.Api().default_entity)
        return make_workspace(entity, project, generators).save()
    except (wandb.Error, requests.RequestException, ValueError) as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"Expected W&B to save the dashboard of project {project}, but got: {reason}. Check that the key is valid "
            f"and that the project exists; the first run with logger=wandb creates it."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
