"""Predicts new rows with a finished run's model: classes with their probabilities, or
the numbers of a regression.

vera-bench predict RUN FILE
    FILE is CSV, TSV, JSONL or parquet, with the text columns of the training
    rows
vera-bench predict RUN FOLDER
    for a run on images: those of a folder, and of the folders in it
vera-bench predict RUN -
    CSV, TSV or JSON lines from the standard input
vera-bench predict RUN FILE out=mine.csv
    writes another file than answers.csv

RUN is a run id, or its beginning, as in outputs/records. The CSV file `out` has the
columns of the rows and what is predicted. It appears complete, at the end. Rows are
kept in OUT.partial as they come: if the command is killed, the same command continues.
Where rows have labels, the metric is printed. You need the run's adapter and head and
its base model, and no training rows.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from runs.command.errors import UserError
from runs.command.parser import OfRecords, entry_point, read, setting
from runs.evaluate import find_finished, kept_file, restore
from runs.machine.hashes import digest
from runs.machine.locks import alone, run_lock
from runs.record.cell import Metric
from runs.record.keys import Count
from runs.record.ledger import write_atomically
from runs.record.schema import Record
from runs.record.spreadsheet import csv_text
from runs.record.text import one_line, plural, printable
from runs.training import predictions
from tasks import DataError, Task, glue
from tasks.images import NewImages
from tasks.tables import Table, read_file
from tasks.text import TextTask, check_columns, make_rows

#: What is shown of the predicted rows.
SHOWN_ROWS, SHOWN_CHARACTERS = 3, 40


@dataclass(frozen=True)
class Settings(OfRecords):
    """Where predictions go, and how they are made. null: as in the run's
    configuration."""

    out: Path = setting(
        Path("answers.csv"), "the file of the predictions, which must not be there yet"
    )
    eval_batch: Count | None = setting(None, "rows predicted at once")
    device: Literal["auto", "cpu", "cuda", "mps"] | None = setting(
        None, "where they are predicted"
    )


@dataclass
class New:
    """New rows: the dev rows of a task. content: a hash of them. about: their own
    columns; None: those that the task has for them. labelled: whether they have
    labels."""

    task: Task
    content: str
    about: Mapping[str, Sequence[Any]] | None = None
    labelled: bool = False


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="RUN FILE|FOLDER|-")
    (name, where), settings = line.names, line.settings
    record, out = find_finished(name, settings.output), settings.out
    run, config = record["id"], {**record["config"], "output": settings.output}
    config |= {
        key: value
        for key in ("eval_batch", "device")
        if (value := getattr(settings, key))
    }
    check_has_head(record)
    with (
        tempfile.TemporaryDirectory() as folder,
        alone(run_lock(settings.output, f"{run}-new"), f"predicting with run {run}"),
    ):
        if os.path.lexists(out):
            raise UserError(
                f"{out} is there already. Name another file, out=, or remove it"
            )
        if not out.parent.is_dir():
            raise UserError(f"{out.parent}: no such folder (out=)")
        path = of_stdin(Path(folder)) if where == "-" else Path(where)
        predict(
            {**record, "config": config}, read_new(record, path, settings.output), out
        )
    return 0


def check_has_head(record: Record) -> None:
    """Raises UserError for a run whose model predicts no classes or numbers."""
    if record["parameters"]["head"]:
        return
    run = record["id"]
    raise UserError(
        f"run {run} ({record['label']['task']}) has no head that predicts. What a "
        f"language model writes: vera-bench answer {run}"
    )


# --- what is read


def of_stdin(folder: Path) -> Path:
    """A file with the content of the standard input, whose name says its format."""
    content = sys.stdin.buffer.read()
    first = content.lstrip(b"\xef\xbb\xbf \r\n").partition(b"\n")[0]
    ending = "jsonl" if first.startswith(b"{") else "tsv" if b"\t" in first else "csv"
    path = folder / f"stdin.{ending}"
    path.write_bytes(content)
    return path


def read_new(record: Record, path: Path, output: str) -> New:
    """The rows of a file or folder. Raises DataError, with file and line, for those
    that the run's model cannot predict, and for labels that it was not trained on."""
    import vera

    settings = record["config"]["task"]
    classes = vera.read_classes(kept_file("head.safetensors", record, output))
    if settings["family"] == "images":
        images = NewImages(settings, path, classes or [])
        return New(images, images.key)
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a file. This run was trained on texts")
    table = Table(path, list(read_file(path)))
    of_first = next((row for _, row in table[1]), {})
    settings = {**settings, "id_column": None}  # all columns are kept
    settings |= (
        glue.columns(settings["name"], of_first) if settings["family"] == "glue" else {}
    )
    label, columns = (
        settings["label_column"],
        dict.fromkeys(key for _, row in table[1] for key in row),
    )
    labelled = any(row.get(label) not in (None, "") for _, row in table[1])
    check_columns(table, settings, labelled)
    if predictions.PREDICTED in columns:
        raise DataError(
            f"{path}: has a column {predictions.PREDICTED!r} already. Rename it"
        )
    try:
        rows = make_rows(table, settings, classes, labelled)
    except DataError as error:
        without = f"Without the column {label!r} the rows are predicted all the same"
        raise DataError(f"{error}. {without}") from None
    rows.labels = rows.labels or [0] * len(rows)
    task = TextTask(settings, classes, record["result"]["metric"], {"dev": rows})
    if scaling := record["data"].get("labels"):
        task.scaling = scaling["mean"], scaling["spread"]
    about = {column: [row.get(column) for _, row in table[1]] for column in columns}
    return New(task, digest(path), about, labelled)


# --- what is predicted


def predict(record: Record, new: New, out: Path) -> None:
    """Predicts rows and writes them. Where they have labels, it prints the score and
    the rows with the largest loss, else the first ones."""
    from runs.sweep.display import Display

    partial = out.with_name(f"{out.name}.partial")
    outputs, task = predict_new(record, new, partial), new.task
    about = task.about("dev") if new.about is None else new.about
    rows = predictions.table(task, about, outputs)
    words = f"{plural(len(outputs), 'row')} in {out}"
    if new.labelled:
        predicted, labels = task.predict(outputs), task.labels("dev")
        losses = _losses(new, outputs)
        rows = [
            [*row, value] for row, value in zip(rows, ["loss", *losses], strict=True)
        ]
        score = Metric(task.metric).text(task.score(predicted, labels))
        words += f", {task.metric} {score}"
        if task.problem == "regression":
            words += f", RMSE {np.sqrt(np.mean((predicted - labels) ** 2)):.6g}"
    write_atomically(out, csv_text(rows))
    partial.unlink()
    Display().line(f"{record['label']['row']} on {record['label']['task']}  {words}")
    if new.labelled:
        columns, *values = rows
        values.sort(key=lambda row: float(row[-1]), reverse=True)
        rows = [columns, *values]
        print("the rows with the largest loss:")
    print(first_rows(rows))


def _losses(new: New, outputs: Any) -> list[str]:
    """The loss of each labelled row."""
    labels = new.task.labels("dev")
    columns, *values = predictions.table(new.task, {}, outputs, labels)
    rows = [dict(zip(columns, row, strict=True)) for row in values]
    return [f"{predictions.loss(row):.6g}" for row in rows]


def predict_new(record: Record, new: New, partial: Path) -> Any:
    """The outputs (rows, num_labels) of rows, in batches of like lengths, with the
    adapter merged where it can be. partial: where they are kept as they come."""
    import torch

    from runs.sweep.display import Display
    from runs.training.decode import weights, write_down

    display, task, size = Display(), new.task, record["config"]["eval_batch"]
    head = f"{record['label']['row']} on {record['label']['task']}"
    context = restore(
        record,
        record["config"]["output"],
        report=lambda event: display.show([(head, event)]),
        task=task,
    )
    lengths = task.lengths("dev")
    if isinstance(task, TextTask) and (cut := task.cut("dev")):
        display.line(
            f"note: {plural(cut, 'row')} cut after {max(lengths)} tokens, as in training"
        )

    @torch.no_grad()
    def outputs(rows: Sequence[int]) -> list[Any]:
        batch = context.batch("dev", rows)
        found: list[Any] = task.answers(context.raw_model, batch)[1].tolist()
        return found

    of = {
        "run": record["id"],
        "weights": weights(context),
        "rows": new.content,
        "batch": size,
    }
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    saved = write_down(context, partial, of, batches, outputs, "predicting")
    return np.asarray([saved[row] for row in range(len(lengths))], dtype=np.float32)


def first_rows(rows: Sequence[Sequence[object]]) -> str:
    """The first of the predicted rows as a table, without the ends of long texts. rows:
    the columns' names come first."""
    columns, *values = rows
    shown = [[_shortened(value) for value in row] for row in values[:SHOWN_ROWS]]
    table = pd.DataFrame(shown, columns=[*columns]).to_string(index=False)
    more = len(values) - len(shown)
    return f"{table}\n... and {plural(more, 'more row')}" if more else table


def _shortened(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = str(printable(one_line(value)))
    return (
        text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
    )


if __name__ == "__main__":
    entry_point(main)
