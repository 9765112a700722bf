"""The variants of a row: runs of the same model and task with other settings."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.frame import CELL_KEY, mark_left_out


def every_variant(runs: pd.DataFrame, keep_nearest_name: bool) -> pd.DataFrame:
    """The runs with every variant of a row as a row of its own: its `row` and `label` get
    the settings that set it apart, such as "VeRA r=256, lr 0.001". Variants are results
    of the same row, model and task, measured in the same way, with other settings or
    another start.

    keep_nearest_name: the variant nearest to its recipe keeps its `row` (not its label),
    so that it stands beside the paper's row."""
    runs = mark_left_out(runs)
    labels = runs.label.copy()
    rows = runs.row.copy()
    columns = [*CELL_KEY, "cell", "label", "settings", "left_out"]
    results = runs.loc[runs.kind == "result", columns]
    # each variant has another `cell`, the hash of its settings
    variant_count = results.groupby(CELL_KEY).cell.transform("nunique")
    for _, group in results[variant_count > 1].groupby(CELL_KEY, sort=False):
        settings_by_cell = group.drop_duplicates("cell").set_index("cell").settings
        texts = unequal_settings(settings_by_cell.to_dict())
        for cell, settings_text in texts.items():
            variant = group[group.cell == cell]
            labels[variant.index] = _variant_label(variant.label.iloc[0], settings_text)
            # a run of the nearest variant is in the cell ("") or repeats one of its seeds
            is_nearest = variant.left_out.isin(["", "seed"]).any()
            if not (keep_nearest_name and is_nearest):
                rows[variant.index] = variant.row + f" {settings_text}"
    return mark_left_out(runs.assign(label=labels, row=rows))


def _variant_label(label: str, settings_text: str) -> str:
    """A row's label, followed by those settings that it does not say already: "VeRA
    r=256" and "lr 0.001, rank 256" make "VeRA r=256, lr 0.001". settings_text: one
    of the texts of `unequal_settings`."""
    words_of_label = label.replace(",", " ").split()
    further_settings = [
        setting
        for setting in settings_text.split(", ")
        if setting.replace("rank ", "r=") not in words_of_label
    ]
    return ", ".join([label, *further_settings])


def unequal_settings(
    settings_by_name: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """A text for each named mapping of settings: its values of the keys in which these
    mappings are not all equal, such as "lr 0.001, rank 4"; "" if all are equal."""
    every_settings = settings_by_name.values()
    unequal_keys = list[str]()
    for key in sorted({*itertools.chain(*every_settings)}):
        values = {str(settings.get(key)) for settings in every_settings}
        if len(values) > 1:
            unequal_keys.append(key)
    texts = dict[str, str]()
    for name, settings in settings_by_name.items():
        phrases = [f"{key} {_value_text(settings.get(key))}" for key in unequal_keys]
        texts[name] = ", ".join(phrases)
    return texts


def _value_text(value: object) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
