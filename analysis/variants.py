"""The variants of a row: runs of the same model and task with other settings."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.frame import CELL_KEY, mark_left_out


def every_variant(runs: pd.DataFrame, keep_nearest_name: bool) -> pd.DataFrame:
    """The runs with every variant of a row as a row of its own, whose label says what
    sets it apart: "VeRA r=256, lr 0.001". Variants are results of the same row, model
    and task, measured in the same way, with other settings or another start.
    keep_nearest_name: the variant nearest to its recipe keeps the row's name, so that
    it stands beside the paper's row."""
    runs = mark_left_out(runs)
    labels = runs.label.copy()
    rows = runs.row.copy()
    columns = [*CELL_KEY, "cell", "label", "settings", "left_out"]
    results = runs.loc[runs.kind == "result", columns]
    # each variant has another `cell`, the hash of its settings
    variant_count = results.groupby(CELL_KEY).cell.transform("nunique")
    for _, group in results[variant_count > 1].groupby(CELL_KEY, sort=False):
        settings_by_cell = group.drop_duplicates("cell").set_index("cell").settings
        for cell, text in unequal_settings(settings_by_cell.to_dict()).items():
            variant = group[group.cell == cell]
            labels[variant.index] = _variant_label(variant.label.iloc[0], text)
            # those of the nearest variant are in a cell, or repeat a seed of it
            is_nearest = variant.left_out.isin(["", "seed"]).any()
            if not (keep_nearest_name and is_nearest):
                rows[variant.index] = variant.row + f" {text}"
    return mark_left_out(runs.assign(label=labels, row=rows))


def _variant_label(label: str, text: str) -> str:
    """A row's label with those settings of the text that it does not say already. text:
    of `unequal_settings`."""
    words_of_label = label.replace(",", " ").split()
    missing = [
        setting
        for setting in text.split(", ")
        if setting.replace("rank ", "r=") not in words_of_label
    ]
    return ", ".join([label, *missing])


def unequal_settings(
    settings_by_name: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """A text for each of several groups of settings, by its name: its values of the keys
    in which the groups are not all equal, such as "lr 0.001, rank 4"."""
    every_settings = settings_by_name.values()
    unequal = list[str]()
    for key in sorted({*itertools.chain(*every_settings)}):
        values = {str(settings.get(key)) for settings in every_settings}
        if len(values) > 1:
            unequal.append(key)
    texts = dict[str, str]()
    for name, settings in settings_by_name.items():
        phrases = [f"{key} {_value_text(settings.get(key))}" for key in unequal]
        texts[name] = ", ".join(phrases)
    return texts


def _value_text(value: object) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
