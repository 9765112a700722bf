"""Which measures a figure shows."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from analysis.figures.figure import LARGE, RTE, paper_first
from runs.record import Ledger, Record, cell_id, is_trial


@dataclass
class Measured:
    """What a figure shows of a model and a task: the measures, one for each run, and notes on what is left
    out.

    of_the_paper: whether the paper's figure is of this model and task; of these there is always one, maybe
    empty.
    """

    model: str
    task: str
    measures: list[Record]
    notes: list[str]

    @property
    def of_the_paper(self) -> bool:
        """Whether it is of the model and task that the paper's figure shows."""
        return (self.model, self.task) == (LARGE, RTE)

    @property
    def where(self) -> str:
        """The model and task by their labels."""
        label = {"model": "RoBERTa-large", "task": "RTE"}
        if self.measures:
            label = self.measures[0]["of"][0]["label"]
        return f"{label['model']} on {label['task']}"


def measured(
    ledger: Ledger, kind: str, keep: Callable[[Record], bool] = lambda _: True
) -> Iterator[Measured]:
    """The measures of a kind by model and task, the paper's first. keep: which measures."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for measure in filter(keep, _measures(ledger, kind)):
        cell = measure["of"][0]["cell"]
        groups[cell["model"], cell["task"]].append(measure)
    for model, task in paper_first(groups):
        yield Measured(model, task, *_one_each(groups.get((model, task), []), ledger))


def _measures(ledger: Ledger, kind: str) -> Iterator[Record]:
    """The measures of a kind, without those of trials, which are in no table and no figure."""
    for measure in ledger.measures.values():
        records = [ledger.records[run["id"]] for run in measure["of"] if run["id"] in ledger.records]
        if measure["kind"] == kind and not any(is_trial(record["config"]) for record in records):
            yield measure


def _one_each(measures: list[Record], ledger: Ledger) -> tuple[list[Record], list[str]]:
    """The measures of runs of one setting, one for each run, in order of seeds; and notes on what that leaves
    out.

    Of several settings: the paper's rank 64 in figure 5, then what deviates least from its recipe, then the
    most runs."""
    notes: list[str] = []
    groups: dict[str, list[Record]] = defaultdict(list)
    for measure in sorted(measures, key=lambda m: [run["cell"]["seed"] for run in m["of"]]):
        unknown = [run["id"] for run in measure["of"] if run["id"] not in ledger.records]
        if unknown:
            notes.append(f"measure {measure['id']}: no record of run {', '.join(unknown)} is here: left out.")
            continue
        records = [ledger.records[run["id"]] for run in measure["of"]]
        groups[" ".join([str(measure["settings"]), *map(cell_id, records)])].append(measure)
    if not groups:
        return [], notes

    def rank(group: list[Record]) -> tuple[bool, int, int]:
        deviations = sum(len(ledger.records[run["id"]]["deviations"]) for run in group[0]["of"])
        return group[0]["settings"].get("ranks") == [64, 64], -deviations, len(group)

    chosen = max(groups.values(), key=rank)
    others = sum(map(len, groups.values())) - len(chosen)
    if others:
        notes.append(f"{others} measures of other settings are left out.")
    by_runs = {tuple(run["id"] for run in measure["of"]): measure for measure in chosen}
    if len(by_runs) < len(chosen):
        notes.append(f"{len(chosen) - len(by_runs)} measures of a run that is measured twice are left out.")
    return list(by_runs.values()), notes
