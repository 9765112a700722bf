"""Variants of a row: results of the same row, model and task with other settings, data or start."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.frame import KEY, chosen


def every_variant(runs: pd.DataFrame, paper: bool) -> pd.DataFrame:
    """The runs with every variant of a row as a row of its own, whose label says what sets it apart: "VeRA
    r=256, lr 0.001". Variants are results of the same row, model and task with other settings, data or
    start. paper: the nearest variant keeps the row's name, so that it stands beside the paper's row."""
    runs = chosen(runs)
    several = runs[runs.kind == "result"].groupby(KEY, sort=False).filter(lambda of: of.cell.nunique() > 1)
    for _, group in several.groupby(KEY, sort=False):
        facts = group.drop_duplicates("cell").set_index("cell").settings
        for cell, words in distinctions(facts).items():
            of = group[group.cell == cell]
            known = of.label.iloc[0].replace(",", " ").split()
            apart = [word for word in words.split(", ") if word.replace("rank ", "r=") not in known]
            runs.loc[of.index, "label"] = ", ".join([of.label.iloc[0], *apart])
            if not paper or not (of.left_out.isin(["", "seed"])).any():
                runs.loc[of.index, "row"] = of.row + f" {words}"
    return chosen(runs)


def distinctions(facts: Mapping[Any, Mapping[str, Any]] | pd.Series) -> dict[Any, str]:
    """Of several mappings, by their names: the keys and values of each in which they are not all alike, in
    words."""
    facts = dict(facts.items())
    keys = sorted({key for of in facts.values() for key in of})
    unlike = [key for key in keys if len({str(of.get(key)) for of in facts.values()}) > 1]

    def word(value: Any) -> str:
        return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    return {name: ", ".join(f"{key} {word(of.get(key))}" for key in unlike) for name, of in facts.items()}
