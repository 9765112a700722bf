"""Shows the wrong answers of a finished run whose texts were read for an answer (maths,
commonsense, your own). For a run with a head it shows the dev rows with the largest
loss.

vera-bench mistakes RUN
    RUN is a run id, or its beginning, as in outputs/records
vera-bench mistakes RUN limit=5 part=gsm8k
    five rows of one part
vera-bench mistakes RUN whole=true
    prompts and texts as they are

vera-bench mistakes RUN FILE
    the rows of a labelled file, predicted by the run, by their loss
vera-bench mistakes RUN out=suspects.csv
    all rows with a head, by their loss, as a CSV file

RUN of task.folds=5 stands for all five: every training row is judged by the run that
did not train on it. The rows with the largest loss are those to check for a wrong label.

The number of a row is its line in last_VARIANT.jsonl in the run's folder, which holds
the right answers, too. With a head, the rows are those of predictions.csv there.
Row 1 is the first row below the header (line 2 of the file).
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from runs.command.errors import UserError
from runs.command.parser import OfRecords, entry_point, one_of, read, setting
from runs.evaluate import find_finished, kept_file
from runs.record.cell import number_of_texts, scored
from runs.record.folds import records_of_folds
from runs.record.ledger import write_atomically
from runs.record.schema import Record
from runs.record.spreadsheet import csv_text, read_csv
from runs.record.text import describe, one_line, plural, printable
from runs.training import predictions

#: A row of predictions.csv.
Row = dict[str, str]
#: What a line of the file says of a test item (ExactTask.write in tasks/exact.py).
KEYS = ("part", "prompt", "text", "expected", "read", "right", "reason")


@dataclass(frozen=True)
class Settings(OfRecords):
    """Which mistakes are shown, and how."""

    limit: PositiveInt = setting(20, "the most rows that are shown")
    part: str | None = setting(
        None, "of this test set, or of rows with this label, alone"
    )
    out: Path | None = setting(
        None, "for a run with a head: the file of all rows by their loss"
    )
    whole: bool = setting(
        False, "prompts and texts as they are, not cut to the terminal's width"
    )


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="RUN [FILE]")
    settings, record = line.settings, find_finished(line.names[0], line.settings.output)
    if line.names[1:]:
        rows_of_file = rank_by_loss(labelled_rows(record, line.names[1], settings))
        return worst(rows_of_file, "row", settings)
    head = record["parameters"]["head"] and not record.get("texts")
    if head or predictions.NAME in record.get("files", {}):
        return worst(*dev_rows(record, settings.output), settings)
    if settings.out:
        raise UserError(f"out={settings.out}: run {record['id']} has no head")
    rows = answers(record, settings.output)
    if settings.part:
        one_of(
            "part",
            settings.part,
            [*dict.fromkeys(row["part"] for row in rows.values())],
        )
        rows = {
            number: row for number, row in rows.items() if row["part"] == settings.part
        }
    wrong = {number: row for number, row in rows.items() if not row["right"]}
    width = shutil.get_terminal_size().columns - 1
    for number, row in [*wrong.items()][: settings.limit]:
        found = "no answer" if row["read"] is None else f"answer {row['read']}"
        print(
            one_line(
                f"row {number}, {row['part']}: {found}, expected {row['expected']}: {row['reason']}"
            )
        )
        for key in ("prompt", "text"):
            text = printable(row[key])
            print(
                text if settings.whole else _cut(f"    {key}: {one_line(text)}", width)
            )
    unread = sum(row["read"] is None for row in wrong.values())
    more = (
        f"; the first {settings.limit} are shown" if len(wrong) > settings.limit else ""
    )
    print(
        f"{len(wrong):,} of {plural(len(rows), 'answer')} are wrong, {unread:,} texts without one{more}"
    )
    return 0


def answers(record: Record, output: str) -> dict[int, dict[str, Any]]:
    """The last epoch's texts as they were read, by line. Raises UserError for a run
    whose texts were not read for an answer, or whose file is missing, changed or
    damaged."""
    run = record["id"]
    if number_of_texts(record) != "exact_match":
        raise UserError(
            f"run {run} has no answers: {record['label']['task']} reads none from decoded texts"
        )
    path = kept_file(f"last_{scored(record)['variant']}.jsonl", record, output)
    try:
        lines = [
            json.loads(text)
            for text in path.read_text(encoding="utf-8").split("\n")
            if text
        ]
        return {
            number: {key: row[key] for key in KEYS}
            for number, row in enumerate(lines, 1)
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({describe(error)}): vera-bench evaluate {run}"
        ) from None


# --- rows with a head


def rank_by_loss(rows: Iterable[Row]) -> list[Row]:
    """The rows, the largest loss first."""
    return sorted(rows, key=predictions.loss, reverse=True)


def dev_rows(record: Record, output: str) -> tuple[list[Row], str]:
    """The dev rows of a run by their loss, and what they are called. Of a fold, the
    rows of all folds that are done. Raises UserError as `answers` does."""
    folds = record["config"]["task"].get("folds")
    if folds is None:
        return rank_by_loss(_kept_rows(record, output)), "dev row"
    rows: list[Row] = []
    records = records_of_folds(record, output)
    for fold, of_fold in records.items():
        rows += [{"fold": str(fold), **row} for row in _kept_rows(of_fold, output)]
    missing = [str(fold) for fold in range(folds) if fold not in records]
    if missing:
        print(
            f"note: of {folds} folds {', '.join(missing)} is not done: the rows are "
            "missing. The same command with task.folds runs what is left"
        )
    return rank_by_loss(rows), "out-of-fold row"


def _kept_rows(record: Record, output: str) -> list[Row]:
    """A run's predictions.csv. Raises UserError where it is missing or damaged."""
    path = kept_file(predictions.NAME, record, output)
    try:
        rows = read_csv(path)
        rank_by_loss(rows)
        return rows
    except (OSError, ValueError, LookupError, TypeError) as error:
        again = f"vera-bench rerun={record['id']} redo=true writes it again"
        raise UserError(f"{path} cannot be read ({describe(error)}): {again}") from None


def labelled_rows(record: Record, file: str, settings: Settings) -> list[Row]:
    """The rows of a file as the run predicts them, with their labels. Raises UserError
    for rows without labels."""
    from runs.predict import check_has_head, predict_new, read_new

    check_has_head(record)
    config = {**record["config"], "output": settings.output}
    new = read_new(record, Path(file), settings.output)
    if not new.labelled:
        label = config["task"]["label_column"]
        raise UserError(f"{file}: no column {label!r} with labels (vera-bench predict)")
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "partial"
        outputs = predict_new({**record, "config": config}, new, partial)
    about, labels = new.task.about("dev"), new.task.labels("dev")
    columns, *values = predictions.table(new.task, about, outputs, labels)
    return [
        {str(name): str(value) for name, value in zip(columns, row, strict=True)}
        for row in values
    ]


def worst(rows: list[Row], name: str, settings: Settings) -> int:
    """Prints rows, which are sorted by their loss, or writes them. name: of one row."""
    label = predictions.LABEL
    if settings.part is not None:
        one_of("part", settings.part, sorted({row[label] for row in rows}))
        rows = [row for row in rows if row[label] == settings.part]
    if settings.out:
        write_atomically(settings.out, csv_text(_with_loss(rows)))
    width = shutil.get_terminal_size().columns - 1
    for row in rows[: settings.limit]:
        print(one_line(printable(predictions.sentence(row))))
        for key in predictions.TEXTS:
            if key not in row:
                continue
            text = printable(row[key])
            if not settings.whole:
                text = _cut(f"    {key}: {one_line(text)}", width)
            print(text)
    words = plural(len(rows), name)
    if predictions.CHANCE.format(rows[0][label]) in rows[0]:
        wrong = sum(row[label] != row[predictions.PREDICTED] for row in rows)
        words = f"{wrong:,} of {words} are wrong"
    if len(rows) > settings.limit:
        words += f"; the {settings.limit} with the largest loss are shown"
    if settings.out:
        words += f"; all of them in {settings.out}"
    print(words)
    return 0


def _with_loss(rows: Sequence[Row]) -> list[list[object]]:
    """The columns' names and the rows, with their loss in the last column."""
    values: list[list[object]] = []
    values += [[*row.values(), f"{predictions.loss(row):.6g}"] for row in rows]
    return [[*rows[0], "loss"], *values]


def _cut(text: str, width: int) -> str:
    """A text without its middle, where it is longer than a line."""
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


if __name__ == "__main__":
    entry_point(main)
