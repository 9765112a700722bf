"""One run to do."""

from dataclasses import dataclass, field
from typing import Any

from runs.record import NOT_SETTINGS, row_label


@dataclass(frozen=True)
class Run:
    """One run to do: its cell, its seed, and its resolved configuration as plain values.

    start: the run whose adapter this one starts from (init_from=ROW@TASK), to be done before it.
    changed: the overrides that gave the method or the training another setting than their files do.
    overrides: a command line that means this run but for its seed. Two that mean the same are one run.
    """

    row: str
    model: str
    task: str
    seed: int
    recipe: str
    experiment: str | None
    config: dict[str, Any]
    start: "Run | None" = None
    changed: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list, compare=False)

    @property
    def method(self) -> dict[str, Any]:
        """The method's own settings, as vera.make_method takes them."""
        return {key: value for key, value in self.config["method"].items() if key not in NOT_SETTINGS}

    @property
    def names(self) -> dict[str, Any]:
        """What a record calls it: its cell, with the seed and the preset ("paper"), and labels for people."""
        task = self.config["task"]
        cell = {"paper": self.experiment, "row": self.row, "model": self.model, "task": task["name"]}
        label = {"row": row_label(self.config), "model": self.config["model"]["label"], "task": task["label"]}
        return {"cell": {**cell, "seed": self.seed}, "label": label}

    @property
    def label(self) -> str:
        """For people: row, task and seed."""
        return f"{row_label(self.config)} on {self.config['task']['label']}, seed {self.seed}"


def run_from(plain: dict[str, Any]) -> Run:
    """A run from the plain values that dataclasses.asdict makes of it."""
    return Run(**plain | {"start": run_from(plain["start"]) if plain["start"] else None})


def starts(runs: list[Run]) -> list[Run]:
    """The runs that others start from, each once."""
    found: list[Run] = []
    for run in runs:
        if run.start and run.start not in found:
            found.append(run.start)
    return found


def with_starts(runs: list[Run]) -> list[Run]:
    """The runs in an order that can be done: those that others start from come first, whether asked for or
    not."""
    first = starts(runs)
    return [*first, *(run for run in runs if run not in first)]
