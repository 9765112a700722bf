"""Figure 6: the mean squared error of fitting random matrices, by parameters."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.figures.figure import MARKERS, Figure, Part, colour, finite
from analysis.figures.measures import draw_band
from analysis.paper import NAMES, paper
from runs.record import Record

SETTINGS = ("matrices", "target", "steps", "lr", "optimizer")
DATA = ["method", "kind", "rank", "parameters", "mean", "low", "high", "spread", "least", "n", "of", "runs"]


def make(part: Part) -> list[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA (VeRA paper, appendix
    E)."""
    data, notes = errors(part.measures), list[str]()
    size, subtitle = 10, ""
    if fit := shown(part.measures):
        size, count = fit["settings"]["size"], fit["settings"]["matrices"]
        subtitle = f"mean of {count} matrices, bands from the lowest to the highest"
        for of in data[data.n < data.of].itertuples():
            notes.append(f"{of.method} at rank {of.rank}: {of.of - of.n} of {of.of} errors are not finite.")
        words = ", ".join(f"{key} {fit['settings'][key]}" for key in SETTINGS)
        notes.append(f"Settings (this project's choice): {words}.")
        notes.append(
            "least: of any matrix of that rank, by singular values; LoRA's fit has converged where it is the same."
        )
        if others := sum(of["kind"] == "matrix_fit" for of in part.measures) - 1:
            notes.append(f"{others} other fits are left out: measure {fit['id']} is shown.")
    else:
        notes.append("Nothing measured: python -m runs.measure matrix_fit takes ten seconds.")
    notes.append("The paper prints no numbers of this figure.")
    notes.append(f"The paper's finding: {paper()['figure6']['finding']}.")
    title = f"Figure 6: fitting random {size} x {size} matrices"
    return [Figure("figure6", title, data[data.n > 0].drop(columns="of"), notes, _draw, subtitle)]


def shown(measures: Iterable[Record]) -> Record | None:
    """The fit that is drawn: each is complete in itself, and this has the lowest seed."""
    fits = [of for of in measures if of["kind"] == "matrix_fit"]
    return min(fits, key=lambda of: (of["seeds"]["random"], of["id"]), default=None)


def errors(measures: Iterable[Record]) -> pd.DataFrame:
    """The errors of the fit that is shown, a row for each method and rank: their mean, spread, lowest and highest
    over the matrices, how many are finite (n, of), and the least that the rank allows."""
    fit, rows = shown(measures), []
    for method, rank, count, mse, least in zip(*fit["values"].values(), strict=True) if fit else ():
        values = pd.Series([finite(value) for value in mse], dtype=float)
        spread = values.std() if values.count() > 1 else 0.0
        row = (NAMES[method], method, rank, count, values.mean(), values.min(), values.max(), spread)
        rows.append(
            (*row, pd.Series(least or [], dtype=float).mean(), values.count(), len(values), (fit["id"],))
        )
    return pd.DataFrame(rows, columns=DATA)


def _draw(axes: Any, data: pd.DataFrame) -> None:
    for kind in (kind for kind in ("lora", "vera") if (data.kind == kind).any()):
        look = (colour(kind), "--" if kind == "lora" else "-", MARKERS[kind])
        draw_band(axes, "parameters", data[data.kind == kind], look, NAMES[kind], "mean")
    if len(lora := data[data.kind == "lora"]):
        least = lora.parameters.min()
        axes.axvline(least, color="#555555", linestyle=":", linewidth=0.8)
        at: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("LoRA, rank 1", (least, 1), (4, -2), va="top", **at)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("mean squared error")
    axes.set_ylim(bottom=-0.02)
    axes.legend()
