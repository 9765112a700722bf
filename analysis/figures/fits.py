"""Figure 6: the error of fitting random matrices by parameters."""

from collections.abc import Iterable, Iterator
from functools import partial

import pandas as pd

from analysis.figures.figure import Figure, Part, draw_lines, finite
from analysis.figures.layers import LOOKS
from analysis.figures.paper_figure import paper_figure
from analysis.paper import METHOD_NAMES
from runs.record.schema import Measure

#: The settings of a fit that its note names.
SETTINGS = ("matrices", "target", "steps", "lr", "optimizer")


def figure6(part: Part) -> Iterator[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA
    (VeRA paper, appendix E)."""
    fit = shown_fit(part.measures)
    if fit is None:
        return
    data = fit_errors(fit)
    settings = fit["settings"]
    choices = ", ".join(f"{key} {settings.get(key)}" for key in SETTINGS)
    notes = [f"Measure {fit['id']}; settings (this project's choice): {choices}."]
    for point in data[data.n < data.total].itertuples():
        missing = point.total - point.n
        notes.append(
            f"{point.method}, rank {point.rank}: {missing} of {point.total} errors "
            "not finite."
        )
    vera_look, lora_look, _ = LOOKS
    draw = partial(
        draw_lines,
        x="parameters",
        y="mean",
        by="method",
        looks={"VeRA": vera_look, "LoRA": lora_look},
        xlabel="trained parameters",
        ylabel="mean squared error",
    )
    count = settings["matrices"]
    size = settings["size"]
    subtitle = f"mean of {count} matrices, bands from the lowest to the highest"
    title = f"fitting random {size} x {size} matrices"
    yield paper_figure(6, title, data[data.n > 0], notes, draw, subtitle)


def shown_fit(measures: Iterable[Measure]) -> Measure | None:
    """The fit of matrices that is drawn; None if there is none. Each fit is complete in
    itself, so of several we show the one with the lowest seed."""
    fits = [measure for measure in measures if measure["kind"] == "matrix_fit"]
    by_seed = sorted(fits, key=lambda fit: (fit["seeds"]["random"], fit["id"]))
    return by_seed[0] if by_seed else None


def fit_errors(fit: Measure) -> pd.DataFrame:
    """The errors of a fit as a figure's data, a line for each method and rank.

    Columns:

    - mean, spread, low, high: of the mean squared errors, over the matrices.
    - n, total: how many errors are finite, and how many there are.
    - least: the mean of the smallest errors that a matrix of this rank can have."""
    # "best" is the key that published measures have for the smallest possible error
    columns = ["method", "rank", "parameters", "mse", "best"]
    table = pd.DataFrame(fit["values"], columns=columns)
    mse = finite(table.mse.explode()).groupby(level=0)
    smallest_mse = finite(table.best.explode()).groupby(level=0)
    statistics = mse.agg(
        mean="mean", low="min", high="max", spread="std", n="count", total="size"
    )
    table = table.join(statistics)
    return table.assign(
        least=smallest_mse.mean(),
        runs=[(fit["id"],)] * len(table),
        kind=table.method,
        method=table.method.map(METHOD_NAMES),
        spread=table.spread.fillna(0.0),  # a single error has none
    )
