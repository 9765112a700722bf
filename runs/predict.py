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
columns of the rows and what is predicted. It is written when all rows are
done. Until then they are in OUT.partial: if the command is killed, the same command
continues.
Where rows have labels, the metric is printed. You need the run's adapter and head and
its base model, and no training rows.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from runs.command.errors import UserError, check_new_file
from runs.command.parser import RecordSettings, entry_point, read_command_line, setting
from runs.evaluate import find_finished, kept_file, restore
from runs.machine.hashes import files_sha256
from runs.machine.locks import holding, run_lock
from runs.record.cell import ReportedMetric
from runs.record.files import write_atomically
from runs.record.keys import Count
from runs.record.schema import Record
from runs.record.spreadsheet import csv_text
from runs.record.text import one_line, plural, printable
from runs.training import predictions
from tasks import DataError, Task, glue
from tasks.images import NewImages
from tasks.tables import DataTable, read_table
from tasks.text import TextTask, check_columns, make_rows

#: What is shown of the predicted rows.
SHOWN_ROWS = 3
SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Settings(RecordSettings):
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
class NewRows:
    """The rows to predict.

    Attributes:
        task: has them as its dev rows.
        content: a hash of them.
        about: their columns, which are written before the predictions; None: those
            that the task names its rows by (`Task.about`).
        labelled: whether they have labels.
    """

    task: Task
    content: str
    about: Mapping[str, Sequence[Any]] | None = None
    labelled: bool = False


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, Settings, positional="RUN FILE|FOLDER|-")
    run_name, source = line.positional
    settings = line.settings
    record = find_finished(run_name, settings.output)
    config = record["config"].copy()
    config["output"] = settings.output
    if settings.eval_batch:
        config["eval_batch"] = settings.eval_batch
    if settings.device:
        config["device"] = settings.device
    check_has_head(record)
    lock = run_lock(settings.output, f"{record['id']}-new")
    with (
        tempfile.TemporaryDirectory() as folder,
        holding(lock, f"predicting with run {record['id']}"),
    ):
        check_new_file(settings.out)
        path = file_of_stdin(Path(folder)) if source == "-" else Path(source)
        new_rows = read_new_rows(record, path, settings.output)
        predict({**record, "config": config}, new_rows, settings.out)
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


def file_of_stdin(folder: Path) -> Path:
    """A file with the content of the standard input, whose name says its format."""
    content = sys.stdin.buffer.read()
    first_line = content.lstrip(b"\xef\xbb\xbf \r\n").partition(b"\n")[0]
    ending = "csv"
    if first_line.startswith(b"{"):
        ending = "jsonl"
    elif b"\t" in first_line:
        ending = "tsv"
    path = folder / f"stdin.{ending}"
    path.write_bytes(content)
    return path


def read_new_rows(record: Record, path: Path, output: str) -> NewRows:
    """The rows of a file or folder. Raises DataError, with file and line, for those
    that the run's model cannot predict, and for labels that it was not trained on.
    output: the folder that holds the run's files, its classes among them."""
    import vera

    settings: dict[str, Any] = {**record["config"]["task"]}
    classes = vera.read_classes(kept_file("head.safetensors", record, output))
    if settings["family"] == "images":
        images = NewImages(settings, path, classes or [])
        return NewRows(images, images.key)
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a file. This run was trained on texts")
    table = DataTable(path, list(read_table(path)))
    rows_of_file = [row for _, row in table.rows]
    settings = {**settings, "id_column": None}  # all columns are kept
    if settings["family"] == "glue":
        # its columns may have GLUE's own names or the hub's
        first_row = rows_of_file[0] if rows_of_file else {}
        settings |= glue.column_settings(settings["name"], first_row)
    label = settings["label_column"]
    columns = dict.fromkeys(key for row in rows_of_file for key in row)
    labelled = any(row.get(label) not in (None, "") for row in rows_of_file)
    check_columns(table, settings, labelled)
    if predictions.PREDICTED in columns:
        raise DataError(
            f"{path}: has a column {predictions.PREDICTED!r} already. Rename it"
        )
    try:
        rows = make_rows(table, settings, classes, labelled)
    except DataError as error:
        raise DataError(
            f"{error}. Without the column {label!r} the rows are predicted all the same"
        ) from None
    # batches need labels, for a loss that predict_rows drops
    rows.labels = rows.labels or [0] * len(rows)
    task = TextTask(settings, classes, record["result"]["metric"], {"dev": rows})
    # a regression that was trained on scaled labels answers in their scale
    scaling = record["data"].get("labels")
    if scaling:
        task.scaling = scaling["mean"], scaling["spread"]
    about = {column: [row.get(column) for row in rows_of_file] for column in columns}
    return NewRows(task, files_sha256(path), about, labelled)


# --- what is predicted


def predict(record: Record, new_rows: NewRows, target: Path) -> None:
    """Predicts rows, writes them to `target`, and prints some of them: the rows with
    the largest loss, and the score, where they have labels; else the first ones."""
    from runs.sweep.display import Display

    # holds the outputs so far, so that an interrupted command continues
    partial = target.with_name(f"{target.name}.partial")
    outputs = predict_rows(record, new_rows, partial)
    task = new_rows.task
    about = task.about("dev") if new_rows.about is None else new_rows.about
    columns, *rows = predictions.prediction_table(task, about, outputs)
    summary = f"{plural(len(outputs), 'row')} in {target}"
    if new_rows.labelled:
        columns.append("loss")
        for row, loss in zip(rows, _losses(task, outputs), strict=True):
            row.append(loss)
        summary += f", {_score_words(task, outputs)}"
    write_atomically(target, csv_text([columns, *rows]))
    partial.unlink()
    label = record["label"]
    Display().line(f"{label['row']} on {label['task']}  {summary}")
    if new_rows.labelled:
        rows.sort(key=lambda row: float(row[-1]), reverse=True)  # by their loss
        print("the rows with the largest loss:")
    print(first_rows([columns, *rows]))


def _score_words(task: Task, outputs: Any) -> str:
    """The score of labelled rows; of a regression also the root of its mean squared
    error."""
    predicted, labels = task.predict(outputs), task.labels("dev")
    score = ReportedMetric(task.metric).text(task.score(predicted, labels))
    text = f"{task.metric} {score}"
    if task.problem == "regression":
        text += f", RMSE {np.sqrt(np.mean((predicted - labels) ** 2)):.6g}"
    return text


def _losses(task: Task, outputs: Any) -> list[str]:
    """The loss of each labelled row."""
    labels = task.labels("dev")
    columns, *values = predictions.prediction_table(task, {}, outputs, labels)
    rows = [dict(zip(columns, row, strict=True)) for row in values]
    return [f"{predictions.row_loss(row):.6g}" for row in rows]


def predict_rows(record: Record, new_rows: NewRows, partial: Path) -> Any:
    """The outputs of the model for rows, an array of shape (rows, num_labels). The rows
    go in batches of similar lengths; decode_missing merges the adapter where it can.
    partial: the file in which outputs are kept as they come."""
    import torch

    from runs.sweep.display import Display
    from runs.training.decode import decode_missing, hash_of_trained

    display = Display()
    task = new_rows.task
    size = record["config"]["eval_batch"]
    name = f"{record['label']['row']} on {record['label']['task']}"
    context = restore(
        record,
        record["config"]["output"],
        report=lambda event: display.show([(name, event)]),
        task=task,
    )
    lengths = task.lengths("dev")
    cut_rows = task.count_cut_rows("dev") if isinstance(task, TextTask) else 0
    if cut_rows:
        limit = max(lengths)  # a row that was cut is as long as the limit
        display.line(
            f"note: {plural(cut_rows, 'row')} cut after {limit} tokens, as in training"
        )

    @torch.no_grad()
    def outputs_of_batch(rows: Sequence[int]) -> list[list[float]]:
        """The outputs for the rows with these indices."""
        batch = context.batch("dev", rows)
        _, answers = task.answers(context.raw_model, batch)
        outputs: list[list[float]] = answers.tolist()
        return outputs

    header = {
        "run": record["id"],
        "weights": hash_of_trained(context),
        "rows": new_rows.content,
        "batch": size,
    }
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    saved = decode_missing(
        context, partial, header, batches, outputs_of_batch, "predicting"
    )
    return np.asarray([saved[row] for row in range(len(lengths))], dtype=np.float32)


def first_rows(rows: Sequence[Sequence[object]]) -> str:
    """The first of the predicted rows as a table, without the ends of long texts. rows:
    first the names of the columns, then the predicted rows."""
    columns, *values = rows
    printed = []
    for row in values[:SHOWN_ROWS]:
        printed.append([_shortened(value) for value in row])
    table = pd.DataFrame(printed, columns=[*columns]).to_string(index=False)
    further = len(values) - len(printed)
    return f"{table}\n... and {plural(further, 'more row')}" if further else table


def _shortened(value: object) -> object:
    """A cell's value as it is printed: a text on one line, of SHOWN_CHARACTERS at most."""
    if not isinstance(value, str):
        return value
    text = str(printable(one_line(value)))
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[: SHOWN_CHARACTERS - 3]}..."


if __name__ == "__main__":
    entry_point(main)
