"""The dashboard of a W&B project, as code; wandb-workspaces (the extra ``dashboard``) is imported where one is made."""

from typing import Any

_STEP = "trainer/global_step"
"""Optimiser steps: the horizontal axis of every curve that Lightning's logger writes."""

_ANY_GENERATOR = r"^(generator_\d+/)?"
"""A single generator's metrics have no prefix (:meth:`kegnet_pl.pipeline.loggers.Loggers.make`)."""


def make_workspace(entity: str, project: str, generators: int = 10) -> Any:
    """Lay out a W&B workspace with the sections generators, samples, students and sweep. Needs no network.

    Args:
        entity: User or team.
        project: W&B project, as in ``logger.wandb.project``.
        generators: Number of generators per run whose sheets are displayed; curves are of all.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``; its ``save()`` needs a key and the network.

    Raises:
        ImportError: If wandb-workspaces is not installed.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name="kegnet_pl",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns, rows))
            for name, panels, columns, rows in (
                ("generators", _generator_panels(), 3, 2),
                ("samples", _sample_panels(generators), 2, 3),
                ("students", _student_panels(), 3, 2),
                ("sweep", _sweep_panels(), 2, 3),
            )
        ],
        settings=ws.WorkspaceSettings(x_axis=_STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            # Not grouped: plots would show means of stages that differ.
            order=[ws.Ordering(ws.Metric("CreatedTimestamp"), ascending=False)],
            pinned_columns=[
                "run:displayName", "run:group", "run:jobType", "summary:test/accuracy", "summary:compression_ratio",
                "summary:seconds",
            ],
        ),
    )  # fmt: skip


def _curves(title: str, *keys: str, regex: str | None = None, **options: Any) -> Any:
    """Return a plot over optimiser steps of metrics that are named, or that an expression names."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x=_STEP, y=list(keys), metric_regex=regex, **options)


def _generator_panels() -> list[Any]:
    names = {
        "loss": "loss",
        "loss_classifier": "classifier term",
        "loss_decoder": "decoder term",
        "loss_diversity": "diversity term",
        "loss_statistics": "term of the batch-norm statistics",
        "accuracy": "the teacher sees the intended class",
        "grad_norm": "gradient norm",
    }
    return [_curves(title, regex=rf"{_ANY_GENERATOR}train/{name}$") for name, title in names.items()]


def _sample_panels(generators: int) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    prefixes = ["", *(f"generator_{index}/" for index in range(generators))]
    return [
        wr.MediaBrowser(
            title="samples: one column for each class",
            media_keys=[f"{prefix}samples/sheet" for prefix in prefixes],
            mode="gallery",
            gallery_axis="step",
            num_columns=2,
        ),
        _curves("the teacher's confidence", regex=rf"{_ANY_GENERATOR}samples/confidence$", range_y=(0, 1)),
        _curves(
            "its confidence, one line for each class", regex=rf"{_ANY_GENERATOR}samples/confidence_\d+$", range_y=(0, 1)
        ),
        _curves("entropy of its answers (nats)", regex=rf"{_ANY_GENERATOR}samples/entropy$"),
        _curves("the same, sample by sample", regex=rf"{_ANY_GENERATOR}samples/entropies$"),
        wr.MediaBrowser(title="all generators, at the end", media_keys=["samples"], mode="gallery", num_columns=1),
    ]


def _student_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        _curves("loss", "train/loss", "val/loss"),
        _curves("agreement with the teacher", "train/accuracy", "val/accuracy"),
        _curves("gradient norm", "train/grad_norm"),
        _curves("entropy of the teacher's labels (nats)", "labels/entropies"),
        wr.WeavePanelSummaryTable(table_name="layers"),
        wr.WeavePanelSummaryTable(table_name="classes"),
    ]


def _sweep_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    accuracy = wr.SummaryMetric("test/accuracy")
    ratio, macs = (wr.SummaryMetric(name) for name in ("compression_ratio", "macs"))
    columns = {
        "method": wr.Config("network"),
        "compression": wr.Config("compression.name"),
        "recipe": wr.Config("recipe"),
        "seed": wr.Config("seed"),
        "ratio": ratio,
        "test accuracy": accuracy,
    }
    axes = [wr.ParallelCoordinatesPlotColumn(metric, display_name=name) for name, metric in columns.items()]
    return [
        wr.ScatterPlot(title="accuracy against compression ratio", x=ratio, y=accuracy, log_x=True),
        wr.ScatterPlot(title="accuracy against multiply-accumulates", x=macs, y=accuracy, log_x=True),
        wr.ParallelCoordinatesPlot(title="settings of the sweep", columns=axes),
        wr.BarPlot(title="accuracy", metrics=[wr.Metric("test/accuracy")], groupby=wr.Config("network")),
        wr.WeavePanelSummaryTable(table_name="results"),
        wr.WeavePanelSummaryTable(table_name="costs"),
        wr.RunComparer(diff_only="split"),
    ]
