"""A finding of the paper, compared with our records: what it says, our numbers, and whether they agree."""

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
    """Runs of one row behind a finding: the row, the model and task, the run ids, and the median and the mean
    of the number that their table reports."""

    row: str
    where: str
    ids: tuple[str, ...]
    median: str = "-"
    mean: str = "-"


def runs_of(cells: Sequence[Cell]) -> tuple[Runs, ...]:
    """The runs of each cell, by seed."""
    behind = []
    for cell in cells:
        by_seed = sorted((record["cell"]["seed"], str(record["id"])) for record in cell.records)
        label, values = cell.records[0]["label"], list(series(cell).values.values())
        averages = [f"{of(values):.1f}" for of in (statistics.median, statistics.fmean) if values]
        where = f"{label['model']}, {label['task']}"
        behind.append(Runs(cell.label, where, tuple(id_ for _, id_ in by_seed), *averages))
    return tuple(behind)


@dataclass(frozen=True)
class Claim:
    """A finding of the paper on one model and task.

    source: its table or figure, with the paper's numbers. where: our model, task, epochs and seeds. here: our
    numbers in words. holds: whether it holds in each run, or in each pair of runs of one seed. agrees:
    whether our runs agree by the epoch that the table reports (None: undecided). firm: of at least FIRM_PAIRS
    pairs or runs. trained: our epochs, the paper's, and the rows still rising at the last epoch.
    """

    claim: str
    source: str
    where: str
    here: str
    holds: tuple[bool, ...]
    agrees: bool | None
    firm: bool
    trained: str = "-"
    runs: tuple[Runs, ...] = ()
    crossfit: "Claim | None" = None  # the same, with each run's epoch chosen by cross-fitting

    @property
    def verdict(self) -> bool | None:
        """Whether our runs agree however the epoch is chosen. None: undecided, also where the reported and
        the cross-fitted epoch say different things."""
        return self.agrees if self.crossfit is None or self.crossfit.agrees is self.agrees else None

    @property
    def word(self) -> str:
        """The verdict, bold where it is firm and decided."""
        if self.verdict is not None:
            return f"**{WORDS[self.verdict]}**" if self.firm else WORDS[self.verdict]
        hangs = "" if self.agrees is None else f" ({WORDS[self.agrees]} by the best epoch)"
        return f"{WORDS[None]}{hangs}"


def claim_of(
    claim: str,
    source: str,
    where: str,
    here: str,
    holds: Sequence[bool],
    agrees: bool | None,
    pairs: int,
    cells: Sequence[Cell],
) -> Claim:
    """A claim from these cells. pairs: how many pairs of runs, or runs, it was tested on."""
    firm = pairs >= FIRM_PAIRS
    return Claim(claim, source, where, here, tuple(holds), agrees, firm, trained(cells), runs_of(cells))


def table_of(record: Record) -> str:
    """Whose table a record's task is compared with: glue (table 2), e2e (table 3), images (table 5), or
    another family."""
    return "glue" if record["cell"]["task"] in GLUE else str(record["config"]["task"].get("family"))


def trained(cells: Sequence[Cell]) -> str:
    """The epochs of some rows, the paper's for that task, and the rows whose best epoch is the last in most
    seeds; "-" without rows."""
    records = [record for cell in cells for record in cell.records]
    if not records:
        return "-"
    epochs = sorted({record["config"]["train"]["epochs"] for record in records})
    rising = []
    for cell in cells:
        several = [record for record in cell.records if len(record["curve"].get("epoch") or []) > 1]
        last = sum(
            best_and_last(record, "paper").get("best_epoch") == record["curve"]["epoch"][-1]
            for record in several
        )
        if 2 * last > len(several):
            rising.append(f"{cell.label} ({last} of {len(several)})")
    text = " to ".join(map(str, epochs)) + _paper_epochs(records[0])
    return text + (f"; still rising: {', '.join(rising)}" if rising else "")


def _paper_epochs(record: Record) -> str:
    """How long the paper trains VeRA on a task."""
    protocol, task = table_of(record), record["cell"]["task"]
    if task in GLUE:
        vera, column = recipes()["glue"]["vera"], tuple(GLUE).index(task)
        base, large = (vera[model]["epochs"][column] for model in ("roberta-base", "roberta-large"))
        return f" (paper: {base} BASE, {large} LARGE)"
    return f" (paper: {recipes()[protocol]['common']['epochs']})" if protocol in ("e2e", "images") else ""
