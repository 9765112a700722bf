"""A finding of the paper, held to our records: what it is, and what is said beside each."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.cells import Cell
from analysis.inference import FIRM_PAIRS
from analysis.paper import GLUE, recipes
from analysis.series import series
from runs.record import Record, best_and_last

#: Whether a finding agrees, in a word.
WORDS = {True: "agrees", False: "does not agree", None: "undecided"}


@dataclass(frozen=True)
class Runs:
    """Runs of one row that numbers of findings are made of: the row, the model and task, the ids, and the
    median and the mean of what their table reports."""

    row: str
    where: str
    ids: tuple[str, ...]
    median: str = "-"
    mean: str = "-"


def runs_of(cells: Sequence[Cell]) -> tuple[Runs, ...]:
    """The runs of each cell."""
    behind = []
    for cell in cells:
        records = sorted(cell.records, key=lambda record: record["cell"]["seed"])
        label, values = records[0]["label"], list(series(cell).values.values())
        middles = [f"{of(values):.1f}" for of in (statistics.median, statistics.fmean) if values]
        ids = tuple(record["id"] for record in records)
        behind.append(Runs(cell.label, f"{label['model']}, {label['task']}", ids, *middles))
    return tuple(behind)


@dataclass(frozen=True)
class Claim:
    """What the paper finds, where it was tried here, the numbers in words, and whether they agree (None:
    undecided).

    holds: what each run says by itself, or each pair of runs of one seed. trained: for how many epochs,
    beside the paper's, and which rows were still rising at the last. firm: of enough pairs or runs for a bold
    word.
    """

    claim: str
    where: str
    here: str
    holds: tuple[bool, ...]
    agrees: bool | None
    firm: bool
    trained: str = "-"
    runs: tuple[Runs, ...] = ()
    crossfit: "Claim | None" = None  # the same, with each run's epoch chosen by cross-fitting

    @property
    def word(self) -> str:
        word = WORDS[self.agrees]
        return f"**{word}**" if self.firm and self.agrees is not None else word


def table_of(record: Record) -> str:
    """Whose table a record's task is held to: glue (table 2), e2e (table 3), images (table 5), or another
    family."""
    return "glue" if record["cell"]["task"] in GLUE else str(record["config"]["task"].get("family"))


def trained(rows: Sequence[Cell]) -> str:
    """The epochs of some rows, the paper's for that task, and the rows whose best epoch is the last in most
    seeds."""
    records = [record for cell in rows for record in cell.records]
    epochs = sorted({record["config"]["train"]["epochs"] for record in records})
    words = [f"{' to '.join(map(str, epochs))}{_paper_epochs(records[0])}"]
    rising = []
    for cell in rows:
        several = [record for record in cell.records if len(record["curve"].get("epoch") or []) > 1]
        last = sum(
            best_and_last(record, "paper").get("best_epoch") == record["curve"]["epoch"][-1]
            for record in several
        )
        if 2 * last > len(several):
            rising.append(f"{cell.label} ({last} of {len(several)})")
    return "; ".join([*words, *([f"still rising: {', '.join(rising)}"] if rising else [])])


def _paper_epochs(record: Record) -> str:
    """How long the paper trains VeRA on a task."""
    protocol, task = table_of(record), record["cell"]["task"]
    if task in GLUE:
        of = [
            recipes()["glue"]["vera"][model]["epochs"][tuple(GLUE).index(task)]
            for model in ("roberta-base", "roberta-large")
        ]
        return f" (paper: {of[0]} BASE, {of[1]} LARGE)"
    return f" (paper: {recipes()[protocol]['common']['epochs']})" if protocol in ("e2e", "images") else ""


def is_firm(pairs: int) -> bool:
    """Whether so many pairs are enough to say more than a tendency."""
    return pairs >= FIRM_PAIRS
