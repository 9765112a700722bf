"""docs/results.md with the findings, a page for each study, and the README's block,
through the templates beside this file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from analysis import figures
from analysis.figures.figure import Figure, Part, svg
from analysis.frame import runs
from analysis.inference import Mean
from analysis.notes import cautions
from analysis.render import (
    NONE,
    Entry,
    Table,
    cell_entry,
    entry_of_runs,
    markdown_grid,
    trained_count,
)
from analysis.results.answers import (
    Costs,
    SingleTask,
    SmallAdapters,
    costs_of,
    single_task,
    small_adapters,
)
from analysis.results.claims import Finding, claim_numbers
from analysis.results.findings import findings as findings_on
from analysis.results.forest import forest
from analysis.results.numbers import rendered_notes
from analysis.results.others_page import others_pages
from analysis.results.starting_rates import starting_rates_files, starting_rule
from analysis.results.study_rows import (
    SIGNIFICANCE,
    OverTasks,
    RowDifference,
    StudyRows,
    rows_over_tasks,
    study_rows,
)
from analysis.results.templates import macros, rendered
from analysis.variants import every_variant
from runs.command.errors import UserError
from runs.record.ledger import Ledger
from runs.record.schema import Measure, Record
from runs.record.templates import CELL_WIDTH
from runs.record.text import folded, one_line

#: `make results` writes what stands between these lines of the README.
BEGIN = "<!-- results of all studies: written by make results -->"
END = "<!-- results of all studies: end -->"


@dataclass(frozen=True)
class PublishedStudy:
    """A folder of published records. runs: of its ledger, as `frame.runs` makes them."""

    folder: Path
    runs: pd.DataFrame
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> pd.DataFrame:
        """The runs that did not fail, trials included."""
        return self.runs[self.runs.kind != "failed"]

    @property
    def trial_count(self) -> int:
        return int((self.finished.kind == "trial").sum())

    @property
    def hours(self) -> float:
        """How long these runs took together."""
        return float(self.finished.seconds.sum() / 3600)


@dataclass(frozen=True)
class Pages:
    """What `make results` writes, and what the README's block is made from.

    files: the text of every page and picture, by its path in docs/. findings: behind
    them. example: VeRA next to LoRA on one task; None if no task has both. rates: the
    text of conf/rates.yaml; "" if the trials are too few for it."""

    files: dict[str, str] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    example: SingleTask | None = None
    rates: str = ""


def studies_of(ledgers: Mapping[Path, Ledger]) -> list[PublishedStudy]:
    return [
        PublishedStudy(folder, runs(ledger), ledger)
        for folder, ledger in ledgers.items()
    ]


def all_runs(studies: Sequence[PublishedStudy]) -> pd.DataFrame:
    """The runs of all studies, with the study that published them as origin. A run that
    several studies have published is in it once for each."""
    frames = [study.runs.assign(origin=study.name) for study in studies]
    # A study without records has columns of Python objects, which would spread.
    with_runs = [frame for frame in frames if len(frame)]
    return pd.concat(with_runs or frames, ignore_index=True)


def near_claims(findings: Sequence[Finding]) -> list[Finding]:
    """The findings on the claims that VeRA is as good as another row, without those for
    which no task has runs of both."""
    return [item for item in findings if item.claim.kind == "near" and item.task_means]


def findings_of(studies: Sequence[PublishedStudy]) -> list[Finding]:
    """The findings over the runs of all studies. A run that several studies have
    published counts once, for the study whose preset started it."""
    frame = all_runs(studies)
    # A study has the name of its preset. Copies of a run in other studies come last, and
    # are dropped.
    is_foreign = frame.preset != frame.origin
    frame = frame.assign(foreign=is_foreign).sort_values("foreign", kind="stable")
    measures = dict[str, Measure]()
    records = dict[str, Record]()
    for study in studies:
        measures |= study.ledger.measures
        records |= study.ledger.records
    return findings_on(frame.drop_duplicates("id"), measures.values(), records)


def pages(ledgers: Mapping[Path, Ledger], docs: Path) -> Pages:
    """The pages of some studies. ledgers: of the studies, by their folders. docs: the
    folder of the pages; results.md links the pages of benchmarks that its bench/ already
    has."""
    studies = studies_of(ledgers)
    every_finding = findings_of(studies)
    costs: Costs | None = None
    example: SingleTask | None = None
    near_findings = near_claims(every_finding)
    if near_findings:
        # Claims have a fixed order, in which "as good as LoRA" is the first of this kind.
        costs = costs_of(near_findings[0], all_runs(studies))
        example = single_task(near_findings[0], all_runs(studies))
    files = others_pages()
    plot = forest(every_finding)
    if plot:
        files["results/forest.svg"] = svg(plot)
    adapters_by_study = dict[str, SmallAdapters]()
    for study in studies:
        page = StudyPage(study)
        files |= page.files()
        adapters = small_adapters(page.over_tasks, page.rows.cells)
        if adapters:
            adapters_by_study[study.name] = adapters
    benches = sorted(docs.glob("bench/*/*.md"))
    files["results.md"] = overview(
        every_finding,
        studies,
        benches=benches,
        adapters_by_study=adapters_by_study,
        costs=costs,
        example=example,
    )
    files["results/comparisons.md"] = comparisons_page(every_finding)
    rates_file = ""
    rule = starting_rule(all_runs(studies))
    if rule:
        files["starting_rates.md"], rates_file = starting_rates_files(rule)
    return Pages(files, every_finding, example, rates_file)


def overview(
    findings: Sequence[Finding],
    studies: Sequence[PublishedStudy] = (),
    benches: Sequence[Path] = (),
    adapters_by_study: Mapping[str, SmallAdapters] = MappingProxyType({}),
    costs: Costs | None = None,
    example: SingleTask | None = None,
) -> str:
    """The page of all studies. benches: pages in docs/bench/NAME. adapters_by_study: the
    small adapters of each study that compares many rows over tasks. costs: VeRA's,
    divided by those of the row in the first finding. example: VeRA and that row on one
    task."""
    return rendered(
        "results.md",
        findings=findings,
        numbers=claim_numbers(findings),
        studies=studies,
        benches=benches,
        adapters_by_study=adapters_by_study,
        costs=costs,
        example=example,
        has_forest=forest(findings) is not None,
    )


def comparisons_page(findings: Sequence[Finding]) -> str:
    """The text of comparisons.md: every comparison, and what is left out."""
    numbers = claim_numbers(findings)
    return rendered("comparisons.md", findings=findings, numbers=numbers)


# --- the README's block


def readme_block(findings: Sequence[Finding], example: SingleTask | None = None) -> str:
    """The README's sentences on VeRA and LoRA over all tasks, and on one (example)."""
    findings_on_lora = [
        finding
        for finding in findings
        if finding.claim.kind == "near" and finding.opponent == "LoRA"
    ]
    return str(macros("readme.md").near_lora(findings_on_lora, example)).strip()


def readme_with_block(text: str, block: str) -> str:
    """The README's text with this block between the lines BEGIN and END. Raises UserError
    where one of them is missing."""
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    previous = re.search(pattern, text, re.DOTALL)
    if not previous:
        raise UserError(f"README.md lacks the lines {BEGIN} and {END}")
    return text.replace(previous[0], f"{BEGIN}\n\n{block}\n\n{END}")


# --- a study


class StudyPage:
    """A study's page: its notes, its rows beside VeRA, and its pictures."""

    def __init__(self, study: PublishedStudy) -> None:
        self.study = study
        self.rows = study_rows(every_variant(study.finished, keep_nearest_name=True))
        self.over_tasks = rows_over_tasks(self.rows.poolable)

    def files(self) -> dict[str, str]:
        """The page and its pictures, by their paths in docs/."""
        name = self.study.name
        figures_by_path = {
            f"{name}_{figure.name}.svg": figure for figure in self._figures()
        }
        notes = rendered_notes(self.study.folder, self.study.runs, self.rows)
        title, notes = _split_title(notes.strip(), name)
        # NOTES.md has the answer (one paragraph), what would change it, and details.
        answer, _, rest = notes.partition("\n\n")
        change, _, details = rest.partition("\n## Details\n")
        tables_by_task, equal_columns = _tables_by_task(rows_table(self.rows))
        page = rendered(
            "study.md",
            title=title,
            answer=answer,
            change=change,
            details=details,
            tables=tables_by_task,
            equal=equal_columns,
            metrics=self._metrics(),
            rows=self.rows,
            has_rate_at_end=any(row.at_end for row in self.rows.rows),
            cautions=cautions(self.rows.cells),
            over_tasks_lines=self._over_tasks_lines(),
            over_tasks=self.over_tasks,
            pictures=[
                (one_line(figure.title), path)
                for path, figure in figures_by_path.items()
            ],
        )
        files = {f"results/{name}.md": page}
        for path, figure in figures_by_path.items():
            files[f"results/{path}"] = svg(figure)
        return files

    def _figures(self) -> list[Figure]:
        """The study's figures, of each row's nearest variant alone: a study may compare
        settings of one row, such as epochs, whose points would cover each other."""
        part = Part(self.study.finished, [*self.study.ledger.measures.values()])
        drawn = list[Figure]()
        for draw in figures.FIGURES.values():
            drawn += [figure for figure in draw(part) if len(figure.data)]
        return drawn

    def _metrics(self) -> list[tuple[str, str]]:
        """The labels of the tasks, each with its metric."""
        cells = self.rows.cells.drop_duplicates(["task", "name"])
        return [*zip(cells.task_label, cells["name"], strict=True)]

    def _over_tasks_lines(self) -> list[str]:
        """The table over tasks as lines of Markdown; none if rows or tasks are few."""
        if not self.over_tasks:
            return []
        table = over_tasks_table(self.over_tasks)
        return markdown_grid(table.header, table.texts)


def _split_title(notes: str, name: str) -> tuple[str, str]:
    """The title of a study's notes (or, without one, the study's name), and the notes
    after it."""
    if not notes.startswith("# "):
        return name, notes
    title, _, rest = notes.partition("\n")
    return title.removeprefix("# "), rest.strip()


def _tables_by_task(
    table: Table,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """A table of all tasks, split by the column "task".

    Returns:
        By task, the lines of its table in Markdown, without the columns in which all of
        its rows are equal. And by task, what these columns say: "model MiniLM".
    """
    columns = table.header or ["task"]  # a study without rows has no header
    texts = pd.DataFrame(table.texts, columns=columns).set_index("task")
    tables = dict[str, list[str]]()
    equal = dict[str, list[str]]()
    for task, lines in texts.groupby(level=0, sort=False):
        # the first column has the rows' names, and stays
        columns_after_name = lines.iloc[:, 1:]
        is_equal = columns_after_name.nunique() == 1
        equal_texts = columns_after_name.iloc[0][is_equal]
        equal[task] = [
            f"{name} {text}"
            for name, text in equal_texts.items()
            if text not in (NONE, "")
        ]
        different = lines.drop(columns=equal_texts.index)
        tables[task] = markdown_grid([*different], different.to_numpy().tolist())
    return tables, equal


def rows_table(rows: StudyRows) -> Table:
    """Each row of a study on each task: its score, and its difference from VeRA with the
    95% interval. The difference is bold if it is significant after Holm's correction
    (`RowDifference.is_firm`)."""
    if not rows.rows:
        return Table("", [], [])
    return Table.of("", [_row_line(row) for row in rows.rows])


def _row_line(row: RowDifference) -> dict[str, Entry]:
    """The line of a row on one task, by the headers of the table."""
    cell: Any = row.cell
    decimals = int(cell.digits)
    # the best rate is the lowest or highest that was tried
    mark = "^" if row.at_end else ""
    line: dict[str, Entry] = {
        "method": "<br>".join(folded(f"{cell.label}{mark}", CELL_WIDTH)),
        "model": cell.model_label,
        "task": cell.task_label,
        "trained": trained_count(cell),
        "median": cell_entry(cell, decimals=decimals),
    }
    line |= difference_columns(row.mean, row.is_firm, cell.ids, decimals)
    line["runs"] = str(cell.runs)
    line["seconds"] = entry_of_runs(cell.seconds, cell.ids, form="seconds")
    return line


def difference_columns(
    mean: Mean, is_firm: bool, ids: tuple[str, ...], decimals: int = 1
) -> dict[str, Entry]:
    """The entries of two columns: a mean difference from VeRA, bold if it is firm
    (significant after Holm's correction), and its interval. ids: of the runs behind it."""
    low, high = mean.interval()
    value = entry_of_runs(mean.mean, ids, sign=True, decimals=decimals)
    ends = entry_of_runs(low, ids, high=high, sign=True, decimals=decimals)
    return {"minus VeRA": f"**{value}**" if is_firm else value, "95% CI": ends}


def over_tasks_table(rows: OverTasks) -> Table:
    """Each row's mean difference from VeRA over tasks, and whether the two are
    equivalent."""
    lines = list[dict[str, Entry]]()
    for row, mean, p in rows.lines():
        line: dict[str, Entry] = {"method": rows.labels[row]}
        line |= difference_columns(mean, p < SIGNIFICANCE, rows.ids[row])
        line["equivalent"] = "yes" if mean.is_within() else ""
        lines.append(line)
    return Table.of("", lines)
