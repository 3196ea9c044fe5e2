"""The command that saves the dashboard."""

import builtins
from typing import Any

import pytest

from kegnet_pl import dashboard
from kegnet_pl.dashboard import main
from tests.integration.conftest import configure


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A W&B that takes every view; what it was given."""
    import wandb
    from wandb_workspaces.workspaces import internal

    saved: list[Any] = []

    def upsert(view: Any) -> dict[str, Any]:
        saved.append(view)
        return {"upsertView": {"view": {"name": "nw-1234-v", "id": "abc"}}}

    class Api:
        default_entity = "me"
        client = type("Client", (), {"app_url": "https://server/"})()

    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://server")
    monkeypatch.setattr("kegnet_pl.pipeline.wandb_runs.has_wandb_key", lambda: True)
    return saved


def test_project_of_the_environment(server: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([]) == 0
    monkeypatch.setenv("WANDB_PROJECT", "cats")
    assert main([]) == 0
    assert [view.project for view in server] == ["kegnet_pl", "cats"]
    assert configure("logger=wandb")["logger"]["wandb"]["project"] == "cats", "runs go where the dashboard is"


def test_saves_to_the_entity_of_the_key(server: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--project", "pets"]) == 0
    (view,) = server
    assert (view.entity, view.project, view.display_name) == ("me", "pets", "kegnet_pl")
    assert "dashboard     https://server/me/pets?nw=" in capsys.readouterr().out


def test_saves_to_a_team(server: list[Any]) -> None:
    assert main(["--entity", "team", "--generators", "1"]) == 0
    assert server[0].entity == "team"


def test_without_a_key_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kegnet_pl.pipeline.wandb_runs.has_wandb_key", lambda: False)
    assert main([]) == 1
    assert "Error: Expected a W&B key, but got none. Run wandb login" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main([]) == 1
    assert "pip install '.[dashboard]'" in capsys.readouterr().err


def test_a_refusal_is_reported(server: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse() -> None:
        raise wandb.errors.CommError("permission denied.")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(dashboard.UserError, match=r"but got: permission denied\. Check that the key is valid"):
        dashboard.save("pets")
