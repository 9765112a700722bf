"""Figure 6: the mean squared error of fitting random matrices, by parameters."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.figures.figure import COLOURS, Figure, Part, draw_bands, finite
from analysis.paper import NAMES, paper
from runs.record import Record

DATA = ["method", "kind", "rank", "parameters", "mean", "low", "high", "spread", "least", "n", "of", "runs"]
LOOKS = {"LoRA": (COLOURS["lora"], "--", "o"), "VeRA": (COLOURS["vera"], "-", "D")}
NOTHING = "Nothing measured: python -m runs.measure matrix_fit takes ten seconds."


def figure6(part: Part) -> list[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA (VeRA paper, appendix
    E)."""
    data, fit = errors(part.measures), _shown(part.measures)
    of = fit["settings"] if fit else {}
    words = ", ".join(f"{key} {of.get(key)}" for key in ("matrices", "target", "steps", "lr", "optimizer"))
    lines = [f"Measure {fit['id']}; settings (this project's choice): {words}." if fit else NOTHING]
    for at in data[data.n < data.of].itertuples():
        lines.append(f"{at.method} at rank {at.rank}: {at.of - at.n} of {at.of} errors are not finite.")
    lines.append(f"The paper prints no numbers of this figure. Its finding: {paper()['figure6']['finding']}.")
    over = f"mean of {of['matrices']} matrices, bands from the lowest to the highest" if fit else ""
    title = f"Figure 6: fitting random {of.get('size', 10)} x {of.get('size', 10)} matrices"
    return [Figure("figure6", title, data[data.n > 0], lines, _draw, over)]


def _shown(measures: Iterable[Record]) -> Record | None:
    """The fit that is drawn: each is complete in itself, and this has the lowest seed."""
    fits = [of for of in measures if of["kind"] == "matrix_fit"]
    return min(fits, key=lambda of: (of["seeds"]["random"], of["id"]), default=None)


def errors(measures: Iterable[Record]) -> pd.DataFrame:
    """The errors of the fit that is shown, a row for each method and rank: their mean, spread, lowest and
    highest over the matrices, how many are finite (n, of), and the least that the rank allows."""
    fit, rows = _shown(measures) or {"id": "", "values": {}}, []
    for method, rank, count, mse, least in zip(*fit["values"].values(), strict=True):
        mse, best = (pd.Series([*map(finite, values or [])], dtype=float) for values in (mse, least))
        spread = mse.std() if mse.count() > 1 else 0.0
        row = NAMES[method], method, rank, count, mse.mean(), mse.min(), mse.max(), spread
        rows.append((*row, best.mean(), mse.count(), len(mse), (fit["id"],)))
    return pd.DataFrame(rows, columns=DATA)


def _draw(axes: Any, data: pd.DataFrame) -> None:
    draw_bands(axes, data, "method", LOOKS, "parameters", "mean")
    first = data.parameters[data.kind == "lora"].min()
    if first == first:  # LoRA has run
        axes.axvline(first, color="#555555", linestyle=":", linewidth=0.8, label="LoRA, rank 1")
    axes.set(xlabel="trained parameters", ylabel="mean squared error", ylim=(-0.02, None))
    axes.legend()
