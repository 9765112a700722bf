"""The learning curves of single runs: their score and their losses over the steps."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.figure import Figure, finite, look, metric_label
from runs.command.errors import UserError
from runs.record.cell import ReportedMetric
from runs.record.schema import Record

#: The columns of a curve's losses, each with the style of its line.
LOSSES = {"train loss": "--", "dev loss": ":"}


def curve(records: Sequence[Record]) -> Figure:
    """The picture of the curves of some runs. Raises UserError if their scores are of
    different metrics, or if none of them was evaluated."""
    metrics = sorted({str(record["result"]["metric"]) for record in records})
    if len(metrics) > 1:
        raise UserError(f"one picture is of one metric, these runs have {metrics}")
    data = pd.concat([_curve_data(record) for record in records], ignore_index=True)
    if data.empty:
        names = ", ".join(record["id"] for record in records)
        raise UserError(f"{names}: stopped before the first evaluation, so no curve")
    labels = " and ".join(dict.fromkeys(data.label))
    name = "curve_" + "_".join(record["id"] for record in records)
    return Figure(
        name=name,
        title="Score (solid) and losses on training (dashed) and dev rows (dotted)",
        data=data,
        notes=[f"Runs: {labels}"],
        draw=partial(_draw_curves, score_label=metric_label(metrics[0])),
    )


def _curve_data(record: Record) -> pd.DataFrame:
    """A run's curve: a row for each evaluation, with the run's colour keys (kind, row) and
    label. What older records lack is NaN."""
    columns = record["curve"]
    unknown = [None] * len(columns["epoch"])
    scale = ReportedMetric.of_record(record).scale
    label = record["label"]
    data = pd.DataFrame(
        {
            "step": finite(columns.get("step", unknown)),
            "epoch": columns["epoch"],
            "score": scale * finite(columns["metric"]),
            "train loss": finite(columns.get("train_loss", unknown)),
            "dev loss": finite(columns.get("dev_loss", unknown)),
        }
    )
    seed = record["cell"]["seed"]
    data["label"] = f"{label['row']} on {label['task']}, seed {seed}"
    data["kind"] = record["config"]["method"]["kind"]
    data["row"] = record["cell"]["row"]
    data["runs"] = record["id"]
    return data


def _draw_curves(axes: Axes, data: pd.DataFrame, score_label: str) -> None:
    """Draws each run in a colour of its own: its score on the left axis, its losses on
    the right."""
    loss_axes = axes.twinx()
    loss_axes.grid(visible=False)
    loss_axes.spines.right.set_visible(True)
    # older records have no steps
    x = "epoch" if data.step.isna().any() else "step"
    colours = _colours(data)
    for run_id, run in data.groupby("runs", sort=False):
        colour = colours[run_id]
        axes.plot(run[x], run.score, color=colour, marker="o", label=run.label.iloc[0])
        for column, dash in LOSSES.items():
            loss_axes.plot(run[x], run[column], dash, color=colour, alpha=0.6)
    axes.set_xlabel(x)
    axes.set_ylabel(score_label)
    loss_axes.set_ylabel("loss")
    loss_axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", fontsize=7)


def _colours(data: pd.DataFrame) -> dict[str, str]:
    """The colour of each run, by its id: that of its method or, if two runs would have
    the same colour, one of matplotlib's for each run."""
    runs = data.drop_duplicates("runs")
    colours = [look(run.kind, run.row)[0] for run in runs.itertuples()]
    if len({*colours}) < len(runs):
        colours = [f"C{number}" for number in range(len(runs))]
    return dict(zip(runs.runs, colours, strict=True))
