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
            apart = [
                word
                for word in words.split(", ")
                if word.replace("rank ", "r=") not in _parts(of.label.iloc[0])
            ]
            runs.loc[of.index, "label"] = ", ".join([of.label.iloc[0], *apart])
            if not paper or not (of.left_out.isin(["", "seed"])).any():
                runs.loc[of.index, "row"] = of.row + f" {words}"
    return chosen(runs)


def _parts(label: str) -> list[str]:
    return label.replace(",", " ").split()


def nearest_to(runs: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The runs with one variant of each row: the one that differs in the fewest settings from an own run of
    that row, model and task; of equals, and where there is no own run, the one that `chosen` takes."""
    mine = own[own.kind == "result"].drop_duplicates([*KEY, "cell"]).groupby(KEY).settings.agg(list).to_dict()
    variants = runs[runs.kind == "result"].drop_duplicates([*KEY, "cell"])
    far = [
        min((sum(of.get(key) != one.get(key) for key in {*of, *one}) for one in mine.get(key, [])), default=0)
        for key, of in zip(variants[KEY].itertuples(index=False, name=None), variants.settings, strict=True)
    ]
    variants = variants.assign(far=far)
    least = variants[variants.far == variants.groupby(KEY).far.transform("min")]
    kept = runs.merge(least[[*KEY, "cell"]]).id
    return chosen(runs[(runs.kind != "result") | runs.id.isin(kept)])


def distinctions(facts: Mapping[Any, Mapping[str, Any]] | pd.Series) -> dict[Any, str]:
    """Of several mappings, by their names: the keys and values of each in which they are not all alike, in
    words."""
    facts = dict(facts.items())
    keys = sorted({key for of in facts.values() for key in of})
    unlike = [key for key in keys if len({str(of.get(key)) for of in facts.values()}) > 1]
    return {name: ", ".join(f"{key} {_word(of.get(key))}" for key in unlike) for name, of in facts.items()}


def _word(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
