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
did not train on it (out of fold). Check the labels of the rows with the largest loss
first. A model that is often wrong puts its own errors among them: the last line says
how many.

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
from typing import cast

from pydantic import PositiveInt

from runs.command.advice import require_known
from runs.command.errors import UserError, check_new_file
from runs.command.parser import RecordSettings, entry_point, read_command_line, setting
from runs.evaluate import find_finished, kept_file
from runs.record.cell import key_of_text_score, scored_texts
from runs.record.files import write_atomically
from runs.record.folds import records_of_folds
from runs.record.schema import Record
from runs.record.spreadsheet import csv_text, read_own_csv
from runs.record.text import describe, one_line, plural, printable
from runs.training import predictions
from tasks.exact import Reading

#: The share of wrong labels for which the last line says what to expect.
ASSUMED_WRONG_LABELS = 0.05
#: A row of predictions.csv: its texts by column.
Row = dict[str, str]


@dataclass(frozen=True)
class Settings(RecordSettings):
    """Which mistakes are shown, and how."""

    limit: PositiveInt = setting(20, "the most rows that are shown")
    part: str | None = setting(
        None, "of this test set, or of rows with this label, alone"
    )
    out: Path | None = setting(
        None,
        "for a run with a head: the file of all rows by their loss, not there yet",
    )
    whole: bool = setting(
        False, "prompts and texts as they are, not cut to the terminal's width"
    )


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, Settings, positional="RUN [FILE]")
    settings = line.settings
    if settings.out:
        check_new_file(settings.out)
    run_name, *files = line.positional
    record = find_finished(run_name, settings.output)
    if files:
        rows = labelled_rows(record, files[0], settings)
        return show_by_loss(rank_by_loss(rows), "row", settings)
    predicts_classes = record["parameters"]["head"] and not record.get("texts")
    # without the file a model with a head gets the error that says how to write it
    if predicts_classes or predictions.FILE_NAME in record.get("files", {}):
        rows, row_name = dev_rows(record, settings.output)
        return show_by_loss(rows, row_name, settings)
    if settings.out:
        raise UserError(f"out={settings.out}: run {record['id']} has no head")
    return show_wrong_answers(answers(record, settings.output), settings)


# --- texts that were read for an answer


def answers(record: Record, output: str) -> dict[int, Reading]:
    """The last epoch's answers, by the number of their line in the file, from 1. Raises
    UserError for a run whose texts were not read for an answer, or whose file is
    missing, changed or damaged."""
    run = record["id"]
    if key_of_text_score(record) != "exact_match":
        raise UserError(
            f"run {run} has no answers: {record['label']['task']} reads none from "
            "decoded texts"
        )
    scores = scored_texts(record)
    assert scores is not None
    path = kept_file(f"last_{scores['variant']}.jsonl", record, output)
    rows = dict[int, Reading]()
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line:
                row = json.loads(line)
                # other keys are left out, and a missing one raises KeyError
                answer = {key: row[key] for key in Reading.__annotations__}
                rows[number] = cast(Reading, answer)
        return rows
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({describe(error)}): vera-bench evaluate {run}"
        ) from None


def show_wrong_answers(rows: dict[int, Reading], settings: Settings) -> int:
    """Prints the first wrong answers, and how many there are. Returns the exit code.
    rows: by the number of their line."""
    if settings.part:
        parts = dict.fromkeys(row["part"] for row in rows.values())
        require_known("part", settings.part, parts)
        rows = {n: row for n, row in rows.items() if row["part"] == settings.part}
    wrong_rows = {number: row for number, row in rows.items() if not row["right"]}
    for number, row in list(wrong_rows.items())[: settings.limit]:
        answer = "no answer" if row["read"] is None else f"answer {row['read']}"
        title = f"row {number}, {row['part']}: {answer}, expected {row['expected']}"
        print(one_line(f"{title}: {row['reason']}"))
        print(_text_for_terminal("prompt", row["prompt"], settings))
        print(_text_for_terminal("text", row["text"], settings))
    unread = sum(row["read"] is None for row in wrong_rows.values())
    summary = (
        f"{len(wrong_rows):,} of {plural(len(rows), 'answer')} are wrong, {unread:,} "
        "texts without one"
    )
    if len(wrong_rows) > settings.limit:
        summary += f"; the first {settings.limit} are shown"
    print(summary)
    return 0


def _text_for_terminal(key: str, text: str, settings: Settings) -> str:
    """A text of a row in one line, behind its key: a long one without its middle. With
    whole=true the text alone, as it is."""
    text = printable(text)
    if settings.whole:
        return text
    width = shutil.get_terminal_size().columns - 1
    line = f"    {key}: {one_line(text)}"
    if len(line) <= width:
        return line
    gap = " ... "
    half = (width - len(gap)) // 2
    return f"{line[:half]}{gap}{line[-half:]}"


# --- rows with a head


def rank_by_loss(rows: Iterable[Row]) -> list[Row]:
    """The rows, the largest loss first."""
    return sorted(rows, key=predictions.row_loss, reverse=True)


def dev_rows(record: Record, output: str) -> tuple[list[Row], str]:
    """The dev rows of a run, the largest loss first, and what one of them is called.
    For a run of one fold these are the rows of all folds that are done. Raises
    UserError where a file is missing, changed or damaged."""
    folds = record["config"]["task"].get("folds")
    if folds is None:
        return rank_by_loss(_kept_rows(record, output)), "dev row"
    rows: list[Row] = []
    records = records_of_folds(record, output)
    for fold, record_of_fold in records.items():
        rows += [
            {"fold": str(fold), **row} for row in _kept_rows(record_of_fold, output)
        ]
    missing = [str(fold) for fold in range(folds) if fold not in records]
    if missing:
        print(
            f"note: without the rows of fold {', '.join(missing)} (of 0 to {folds - 1}), "
            "which nobody has trained yet. The same command with task.folds trains "
            "what is left"
        )
    return rank_by_loss(rows), "training row"


def _kept_rows(record: Record, output: str) -> list[Row]:
    """A run's predictions.csv. Raises UserError where it is missing or damaged."""
    path = kept_file(predictions.FILE_NAME, record, output)
    try:
        rows = read_own_csv(path)
        rank_by_loss(rows)  # raises ValueError or KeyError for rows without a loss
        return rows
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({describe(error)}): vera-bench "
            f"rerun={record['id']} redo=true writes it again"
        ) from None


def labelled_rows(record: Record, file: str, settings: Settings) -> list[Row]:
    """The rows of a file as the run predicts them, with their labels. Raises UserError
    for rows without labels."""
    from runs.predict import check_has_head, predict_rows, read_new_rows

    check_has_head(record)
    config = record["config"].copy()
    config["output"] = settings.output
    new_rows = read_new_rows(record, Path(file), settings.output)
    if not new_rows.labelled:
        label = config["task"]["label_column"]
        raise UserError(f"{file}: no column {label!r} with labels (vera-bench predict)")
    # unlike `vera-bench predict`, this command starts anew after a kill
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "partial"
        outputs = predict_rows({**record, "config": config}, new_rows, partial)
    task = new_rows.task
    columns, *values = predictions.prediction_table(
        task, task.about("dev"), outputs, task.labels("dev")
    )
    rows: list[Row] = []
    for row in values:
        pairs = zip(columns, row, strict=True)
        rows.append({str(name): str(value) for name, value in pairs})
    return rows


def show_by_loss(rows: list[Row], row_name: str, settings: Settings) -> int:
    """Prints the first rows and how many there are; with out= it also writes all of
    them to that file. Returns the exit code.

    Args:
        rows: The largest loss first.
        row_name: What a row is called: "dev row"."""
    label = predictions.LABEL
    if settings.part is not None:
        require_known("part", settings.part, sorted({row[label] for row in rows}))
        rows = [row for row in rows if row[label] == settings.part]
    if settings.out:
        write_atomically(settings.out, csv_text(_with_loss(rows)))
    for row in rows[: settings.limit]:
        print(one_line(printable(predictions.describe_row(row))))
        for key in predictions.TEXTS:
            if key in row:
                print(_text_for_terminal(key, row[key], settings))
    summary = plural(len(rows), row_name)
    own_errors = ""
    # a regression has no columns of probabilities
    if predictions.PROBABILITY.format(rows[0][label]) in rows[0]:
        differing = sum(row[label] != row[predictions.PREDICTED] for row in rows)
        summary = f"the prediction differs from the label in {differing:,} of {summary}"
        own_errors = words_on_own_errors(differing, len(rows))
    if len(rows) > settings.limit:
        summary += f"; the {settings.limit} with the largest loss are shown"
    if settings.out:
        summary += f"; {settings.out} has all {len(rows):,} rows"
    print(summary)
    if own_errors:
        print(own_errors)
    return 0


def words_on_own_errors(differing: int, rows: int) -> str:
    """A sentence on how often the predictions agree with the labels, and one on how
    many of the differing rows are at least the model's own errors if
    ASSUMED_WRONG_LABELS of all labels are wrong.

    A wrong label explains one differing row at most; the model is wrong in the others.
    It is a bound from below, since the model also predicts some of the wrong labels."""
    text = f"The predictions agree with {1 - differing / rows:.1%} of these labels."
    wrong_labels = round(ASSUMED_WRONG_LABELS * rows)
    own_errors = differing - wrong_labels
    if own_errors <= 0:
        return text
    return (
        f"{text} For example, if {wrong_labels:,} of the labels "
        f"({ASSUMED_WRONG_LABELS:.0%}) were wrong, at least {own_errors:,} of the "
        f"{differing:,} would differ because the model is wrong"
    )


def _with_loss(rows: Sequence[Row]) -> list[list[object]]:
    """The columns' names and the rows, with their loss in the last column."""
    values: list[list[object]] = []
    values += [[*row.values(), f"{predictions.row_loss(row):.6g}"] for row in rows]
    return [[*rows[0], "loss"], *values]


if __name__ == "__main__":
    entry_point(main)
