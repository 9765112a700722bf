"""One run, before it is done: its settings, its steps and its batches."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from runs.command.errors import UserError
from runs.record.cell import row_label
from runs.record.configuration import Configuration
from runs.record.keys import is_own_setting
from runs.record.ledger import PUBLISHED
from runs.record.override import Override
from runs.record.schema import Cell, Label, Record

#: Methods whose runs take less time than those of all others: `head` needs no gradient of
#: the model, and `none` does not train.
METHODS_OF_SHORT_RUNS = frozenset({"head", "none"})


@dataclass(frozen=True)
class Run:
    """One run: its cell, its seed, and its resolved configuration as plain values.

    start: the run whose adapter this one starts from (init_from=ROW@TASK), which has to
    be done first. changed: the overrides that set the method, the training or the model
    differently from their files. overrides: a command line for this run without its
    seed; it does not tell runs apart."""

    row: str
    model: str
    task: str
    seed: int
    recipe: str
    experiment: str | None
    config: Configuration
    start: "Run | None" = None
    changed: list[Override] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list, compare=False)

    @property
    def method(self) -> dict[str, Any]:
        """The method's own settings, as vera.make_method takes them."""
        return {
            key: value
            for key, value in self.config["method"].items()
            if is_own_setting(key)
        }

    @property
    def cell(self) -> Cell:
        """The cell of the run, with its seed and preset ("paper"), as records have
        it."""
        return {
            "paper": self.experiment,
            "row": self.row,
            "model": self.model,
            "task": self.config["task"]["name"],
            "seed": self.seed,
        }

    @property
    def labels(self) -> Label:
        """The row, model and task as people read them, as records have them."""
        return {
            "row": row_label(self.config),
            "model": self.config["model"]["label"],
            "task": self.config["task"]["label"],
        }

    @property
    def recorded_overrides(self) -> list[str]:
        """The overrides as records have them: without the place of the output."""
        return [text for text in self.overrides if not text.startswith("output=")]

    @property
    def recipe_keys(self) -> set[str]:
        """The settings that the recipe has for the run's task."""
        recipe = self.config.get("recipe")
        if not recipe:
            return set()
        keys = set(recipe)
        for key, by_task in (recipe.get("by_task") or {}).items():
            if self.config["task"]["name"] in (by_task or {}):
                keys.add(key)
        return keys

    @property
    def recipe_gap(self) -> str:
        """A sentence that says which settings are the harness's defaults because there is
        no recipe, or none with a rate and epochs for the task; "" if there is one."""
        rate = "lr_head" if self.method["kind"] == "head" else "lr"
        changed = {override.key for override in self.changed}
        if self.method["kind"] == "none":
            return ""
        if self.recipe == "defaults":
            return "no recipe for this method and model: the harness's defaults"
        lacking = []
        for key in sorted({"epochs", rate} - self.recipe_keys):
            if f"train.{key}" not in changed:
                lacking.append(key)
        if not lacking:
            return ""
        keys = " and ".join(lacking)
        return f"the recipe has no {keys} for this task: the harness's defaults"

    @property
    def label(self) -> str:
        """Row, task and seed as people read them."""
        return f"{row_label(self.config)} on {self.config['task']['label']}, seed {self.seed}"


def check_dev_rows(rows: int) -> None:
    """Raises UserError for a dev set of one row."""
    if rows < 2:
        reason = "two are needed, since an epoch is also chosen on each half of it"
        raise UserError(f"the dev set has {rows} row: {reason}")


def epoch_batches(
    lengths: Sequence[int], size: int, seed: int, epoch: int, block: int = 8
) -> list[list[int]]:
    """The rows of each effective batch of an epoch, by their indices. They depend on the
    arguments alone, so that a resumed run has the same batches.

    lengths: of all rows. size: rows of a batch. seed: data_seed. block: how many batches
    are filled from rows that are sorted by length (tasks.Task). Which rows share a batch
    still differs between epochs."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(len(lengths)).tolist()
    batches = []
    for start in range(0, len(order), size * block):
        block_rows = order[start : start + size * block]
        if block > 1:
            block_rows.sort(key=lambda row: lengths[row])
        batches += [block_rows[i : i + size] for i in range(0, len(block_rows), size)]
    # The batches of a block are sorted, too, and must not follow each other.
    return [batches[i] for i in generator.permutation(len(batches))]


def runs_started_from(runs: list[Run]) -> list[Run]:
    """The runs whose adapters some of these runs start from, each once."""
    started_from: list[Run] = []
    for run in runs:
        if run.start and run.start not in started_from:
            started_from.append(run.start)
    return started_from


def with_starts(runs: list[Run]) -> list[Run]:
    """The runs, in an order in which they can be done: first those that others start
    from, which need not be among `runs`."""
    first = runs_started_from(runs)
    return [*first, *(run for run in runs if run not in first)]


def overrides_of(record: Record) -> list[str]:
    """The overrides with which `vera-bench run` repeats a record's run. Empty if there are
    none, as for an unpublished run of an older version. In those of a published run only
    the last part of a local path is left."""
    words = _published_overrides().get(record["id"]) or record.get("overrides")
    return [*words, f"seed={record['cell']['seed']}"] if words else []


@cache
def _published_overrides() -> dict[str, list[str]]:
    """Overrides without the seed, by run id, for published records that have none of
    their own, or whose own now compose another run because a recipe has changed."""
    lines = (PUBLISHED / "overrides.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        run: line["overrides"]
        for line in map(json.loads, lines)
        for run in line["runs"].split()
    }
