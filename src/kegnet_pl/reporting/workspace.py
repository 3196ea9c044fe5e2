"""The dashboard of a W&B project, as code; wandb-workspaces (the extra ``dashboard``) is imported where one is made."""

from typing import Any

_TEACHER = "^teacher/"
_ANY_STUDENT = "^student/[^/]+/"
_ANY_GENERATOR = r"^generators/(generator_\d+/)?"
"""A single generator's metrics have no name (:meth:`kegnet_pl.pipeline.loggers.Loggers.make`)."""


def make_workspace(entity: str, project: str, generators: int = 10) -> Any:
    """Lay out a W&B workspace for runs of whole pipelines. Needs no network.

    Its sections are result, teacher, generators, samples, students and sweep.

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
                ("result", _result_panels(), 3, 2),
                ("teacher", _fit_panels(_TEACHER, "accuracy", "(train|val)/accuracy"), 3, 1),
                ("generators", _generator_panels(), 3, 2),
                ("samples", _sample_panels(generators), 2, 3),
                ("students", _student_panels(), 3, 2),
                ("sweep", _sweep_panels(), 2, 3),
            )
        ],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Metric("CreatedTimestamp"), ascending=False)],
            pinned_columns=[
                "run:displayName", "run:group", "summary:method", "summary:accuracy", "summary:agreement",
                "summary:compression_ratio", "summary:speedup", "summary:seconds",
            ],
        ),
    )  # fmt: skip


def _curves(title: str, stage: str, name: str, **options: Any) -> Any:
    """Return a plot of the metrics of a stage that an expression names, over the steps that the run defines for it."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, metric_regex=f"{stage}{name}$", **options)


def _fit_panels(stage: str, title: str, accuracy: str) -> list[Any]:
    return [
        _curves("loss", stage, "(train|val)/loss"),
        _curves(title, stage, accuracy),
        _curves("gradient norm", stage, "train/grad_norm"),
    ]


def _result_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    numbers = ("accuracy", "agreement", "compression_ratio", "speedup", "seconds")
    bars = [wr.BarPlot(title=name.replace("_", " "), metrics=[wr.Metric(name)]) for name in numbers]
    return [*bars, wr.WeavePanelSummaryTable(table_name="results"), wr.WeavePanelSummaryTable(table_name="costs")]


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
    return [_curves(title, _ANY_GENERATOR, f"train/{name}") for name, title in names.items()]


def _sample_panels(generators: int) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    prefixes = ["generators/", *(f"generators/generator_{index}/" for index in range(generators))]
    return [
        wr.MediaBrowser(
            title="samples: one column for each class",
            media_keys=[f"{prefix}samples/sheet" for prefix in prefixes],
            mode="gallery",
            gallery_axis="step",
            num_columns=2,
        ),
        _curves("the teacher's confidence", _ANY_GENERATOR, "samples/confidence", range_y=(0, 1)),
        _curves("its confidence, one line for each class", _ANY_GENERATOR, r"samples/confidence_\d+", range_y=(0, 1)),
        _curves("entropy of its answers (nats)", _ANY_GENERATOR, "samples/entropy"),
        _curves("the same, sample by sample", _ANY_GENERATOR, "samples/entropies"),
        wr.MediaBrowser(title="all generators, at the end", media_keys=["samples"], mode="gallery", num_columns=1),
    ]


def _student_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        *_fit_panels(_ANY_STUDENT, "agreement in training, accuracy in validation", "(train/agreement|val/accuracy)"),
        _curves("entropy of the teacher's labels (nats)", _ANY_STUDENT, "labels/entropies"),
        wr.WeavePanelSummaryTable(table_name="compression/layers"),
        wr.WeavePanelSummaryTable(table_name="T+KegNet/classes"),
    ]


def _sweep_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    accuracy, agreement, ratio, macs, speedup = (
        wr.SummaryMetric(name) for name in ("accuracy", "agreement", "compression_ratio", "macs", "speedup")
    )
    columns = {
        "compression": wr.Config("compression.name"),
        "recipe": wr.Config("recipe"),
        "seed": wr.Config("seed"),
        "ratio": ratio,
        "agreement": agreement,
        "accuracy": accuracy,
    }
    axes = [wr.ParallelCoordinatesPlotColumn(metric, display_name=name) for name, metric in columns.items()]
    return [
        wr.ScatterPlot(title="accuracy against compression ratio", x=ratio, y=accuracy, log_x=True),
        wr.ScatterPlot(title="agreement against compression ratio", x=ratio, y=agreement, log_x=True),
        wr.ScatterPlot(title="accuracy against multiply-accumulates", x=macs, y=accuracy, log_x=True),
        wr.ScatterPlot(title="agreement against speed-up", x=speedup, y=agreement),
        wr.ParallelCoordinatesPlot(title="settings of the sweep", columns=axes),
        wr.RunComparer(diff_only="split"),
    ]
