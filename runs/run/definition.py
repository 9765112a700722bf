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
    """One run: its row, model and task, which name a cell of a table; its seed; and its
    resolved configuration as plain values.

    row, model, task, recipe: their names in conf/. A row is a method with its settings,
    which has a row of its own in tables. experiment: the preset that it was started by.
    start: the run whose adapter this one starts from (init_from=ROW@TASK),
    which has to be done first. changed: the overrides that set the method, the training
    or the model differently from their files. overrides: a command line for this run
    without its seed, which runs are not compared by."""

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
        """The cell of the run, with its seed and preset, as records have it. There the
        preset (experiment=) is called "paper"."""
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
        """The names of the settings that the recipe has for the run's task."""
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
        """A sentence that says that the learning rate, the epochs or both are the harness's
        defaults, because no recipe and no override sets them; "" if they are not."""
        if self.method["kind"] == "none":  # nothing trains
            return ""
        if self.recipe == "defaults":
            return "no recipe for this method and model: the harness's defaults"
        rate = "lr_head" if self.method["kind"] == "head" else "lr"
        changed_keys = {override.key for override in self.changed}
        missing = []
        for key in sorted({"epochs", rate} - self.recipe_keys):
            if f"train.{key}" not in changed_keys:
                missing.append(key)
        if not missing:
            return ""
        keys = " and ".join(missing)
        return f"the recipe has no {keys} for this task: the harness's defaults"

    @property
    def label(self) -> str:
        """Row, task and seed as people read them."""
        return f"{row_label(self.config)} on {self.config['task']['label']}, seed {self.seed}"


def check_dev_rows(rows: int) -> None:
    """Raises UserError for a dev set of fewer than two rows. rows: how many it has."""
    if rows < 2:
        reason = "two are needed, since an epoch is also chosen on each half of it"
        raise UserError(f"the dev set has {rows} row: {reason}")


def epoch_batches(
    lengths: Sequence[int], size: int, seed: int, epoch: int, block: int = 8
) -> list[list[int]]:
    """The effective batches of an epoch, each a list of indices of rows. They depend on
    the arguments alone, so that a resumed run has the same batches.

    lengths: of all training rows, in tokens. size: rows of a batch. seed: data_seed.
    epoch: its number, from 0 on. block: the rows of so many batches are drawn at random,
    and then sorted by length, so that rows of a batch are of similar length and differ
    between epochs (tasks.Task); 1 for random batches."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(len(lengths)).tolist()
    batches = []
    for start in range(0, len(order), size * block):
        block_rows = order[start : start + size * block]
        if block > 1:
            block_rows.sort(key=lambda row: lengths[row])
        batches += [block_rows[i : i + size] for i in range(0, len(block_rows), size)]
    # Sorting has put the batches of each block in order of length, too: shuffle them
    return [batches[i] for i in generator.permutation(len(batches))]


def runs_started_from(runs: list[Run]) -> list[Run]:
    """The runs whose adapters these runs start from (Run.start), each once."""
    started_from: list[Run] = []
    for run in runs:
        if run.start and run.start not in started_from:
            started_from.append(run.start)
    return started_from


def with_starts(runs: list[Run]) -> list[Run]:
    """These runs and those that they start from, in an order in which they can be done:
    first those that others start from, which need not be among `runs`."""
    started_from = runs_started_from(runs)
    return [*started_from, *(run for run in runs if run not in started_from)]


def overrides_of(record: Record) -> list[str]:
    """The overrides with which `vera-bench run` repeats a record's run, its seed among
    them. Empty if they are not known, as for an unpublished run of an older version. In
    those of a published run only the last part of a local path is left."""
    overrides = _published_overrides().get(record["id"]) or record.get("overrides")
    if not overrides:
        return []
    return [*overrides, f"seed={record['cell']['seed']}"]


@cache
def _published_overrides() -> dict[str, list[str]]:
    """Overrides without the seed, by run id, for published records that have none of
    their own, or whose own now compose another run because a recipe has changed."""
    text = (PUBLISHED / "overrides.jsonl").read_text(encoding="utf-8")
    overrides_by_id = dict[str, list[str]]()
    for line in text.splitlines():
        entry = json.loads(line)
        for run_id in entry["runs"].split():  # runs that differ in their seed alone
            overrides_by_id[run_id] = entry["overrides"]
    return overrides_by_id
