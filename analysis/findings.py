"""The paper's claims on your runs and on what the project has published: the mean
difference over tasks, its interval and the verdict.

vera-bench findings
vera-bench findings claim=1     one claim, task by task
vera-bench findings task=mrpc   every claim on a part of the records

docs/results.md prints the same numbers; docs/statistics.md explains the rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.command import Selection, open_rows
from analysis.frame import runs
from analysis.inference import Mean
from analysis.render import NONE, Entry, Number, Table, entry_of_runs, render
from analysis.results.claims import Finding, claim_numbers, claims
from analysis.results.findings import findings
from analysis.results.templates import macros
from runs.command.errors import UserError
from runs.command.parser import entry_point, read_command_line, setting
from runs.record.folder import WholeRecords

#: The note on how these verdicts go with the p values of other commands.
NOTE_ON_P = (
    "A verdict is of one claim over all its tasks, by the 95% CI, without correction. "
    "p (Holm) of stats and table is for choosing among many rows: both can be right."
)
NOTE_ON_DEV_ROWS = (
    "The interval of a task is over seeds, and leaves out the choice of its dev rows."
)
RULE = (
    "Differences in points, over pairs of runs with one seed in which no run collapsed. A mean "
    "over tasks counts each model with each task once."
)


@dataclass(frozen=True)
class Settings(Selection):
    """Which claims are shown, and how."""

    claim: int | None = setting(None, "this claim alone, task by task, by its number")
    format: Literal["md", "latex", "csv"] = setting("md", "how the table is printed")


def main(arguments: list[str]) -> int:
    """Prints every claim with its verdict, or one task by task."""
    settings = read_command_line(arguments, Settings).settings
    ledger = open_rows(settings)
    measures = ledger.measures.values()
    # the ledger has rows; a claim that needs a whole record reads it from its file
    every_finding = findings(runs(ledger), measures, WholeRecords(ledger))
    if not every_finding:
        raise UserError("no two rows of a claim have run on one task (make demo)")
    tables = [claims_table(every_finding)]
    if settings.claim is not None:
        tables = tables_by_task(every_finding, settings.claim)
    print(render(tables, settings.format))
    return 0


def claims_table(every_finding: Sequence[Finding]) -> Table:
    """A line for each finding: a claim has one, or several with a name each if it
    compares several pairs of rows."""
    numbers = claim_numbers(every_finding)
    lines = list[dict[str, Entry]]()
    for finding in every_finding:
        # claim.finding is the claim's sentence, by which claims are counted
        number = numbers[finding.claim.finding]
        label = finding.claim.name
        if finding.name:
            label += f": {finding.name}"
        line: dict[str, Entry] = {"claim": f"{number}. {label}"}
        # task_means is empty for a claim that is measured without pairs of runs
        combinations = len(finding.task_means) or len(finding.comparisons)
        line["model-task combinations"] = str(combinations)
        line |= _difference_entries(finding.mean)
        line["verdict"] = str(finding.verdict)
        lines.append(line)
    note = f"{RULE} claim=1 shows the first claim task by task."
    return Table.of("The paper's claims on these runs", lines, [note, NOTE_ON_P])


def tables_by_task(every_finding: Sequence[Finding], number: int) -> list[Table]:
    """A claim's mean differences on each task: a table for each of its findings, and one
    of the tasks whose runs are in no pair, with the reason. Of a claim that is measured
    without pairs, what was measured on each task. number: of the claim, as
    `claims_table` counts them.

    Raises:
        UserError: no claim has this number, or the runs have no finding on it.
    """
    if not 1 <= number <= len(claims()):
        raise UserError(f"claim={number}: there are {len(claims())}")
    numbers = claim_numbers(every_finding)
    findings_of_claim = [
        finding for finding in every_finding if numbers[finding.claim.finding] == number
    ]
    if not findings_of_claim:
        name = claims()[number - 1].name
        existing = ", ".join(map(str, numbers.values()))
        raise UserError(
            f"claim={number} ({name}): no finding on these runs. There are: {existing}"
        )
    tables = list[Table]()
    for finding in findings_of_claim:
        lines = list[dict[str, Entry]]()
        for task, mean in finding.task_means.items():
            pairs = Number(finding.pair_counts[task], form="count")
            line: dict[str, Entry] = {"task": task, "pairs": pairs}
            lines.append(line | _difference_entries(mean))
        if lines:
            line = {"task": "mean", "pairs": ""}
            lines.append(line | _difference_entries(finding.mean))
            title = f"{number}. {finding.title}: {finding.verdict}"
            tables.append(Table.of(title, lines, [RULE, NOTE_ON_DEV_ROWS]))
    # the findings of a claim have the same exclusions
    exclusions: list[dict[str, Entry]] = [
        {"study": exclusion.study, "task": exclusion.place, "why": exclusion.reason}
        for exclusion in findings_of_claim[0].exclusions
    ]
    if exclusions:
        tables.append(Table.of("In no pair of this claim", exclusions))
    if tables:
        return tables
    return [_table_without_pairs(finding, number) for finding in findings_of_claim]


def _table_without_pairs(finding: Finding, number: int) -> Table:
    """The finding on a claim that compares no pairs of runs: a line for each model and
    task on which it was measured, with its verdict there. number: of the claim."""
    phrases = macros("words.md")  # the same words as on the study pages
    lines: list[dict[str, Entry]] = [
        {
            "measured on": comparison.place,
            # each number of runs that a row has
            "runs": " to ".join(map(str, comparison.counts)) or NONE,
            "measured": str(phrases.measured(comparison)),
            "verdict": str(comparison.verdict),
        }
        for comparison in finding.comparisons
    ]
    title = f"{number}. {finding.title}: {finding.verdict}"
    return Table.of(title, lines, ["This claim is measured without pairs of runs."])


def _difference_entries(mean: Mean) -> dict[str, Entry]:
    """A mean difference and its 95% interval, as two entries of a line."""
    low, high = mean.interval()
    no_ids = ()  # a Mean does not know which runs it is of
    return {
        "difference": entry_of_runs(mean.mean, no_ids, sign=True),
        "95% CI": entry_of_runs(low, no_ids, high=high, sign=True),
    }


if __name__ == "__main__":
    entry_point(main)
