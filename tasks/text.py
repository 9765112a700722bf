"""Text classification and regression from any CSV, TSV, JSONL or parquet file, or hub data set.

Labels that are whole numbers or words are classes; labels with a fractional part make it a regression
(`task.regression=` decides where that guess is wrong). A label that is not a finite number among such ones is
refused: a missing value would make classes of all. The demo's reviews are one such task (tasks/reviews.py).
"""

import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr

import numpy as np

from tasks.base import (
    Array,
    DataError,
    Rows,
    Source,
    Task,
    block,
    held_out,
    listed,
    parse_json,
    quoted,
    subset,
)
from tasks.fetch.hub import content

PROTOCOL = 1

METRICS = ("accuracy", "matthews", "pearson")  # those of tasks/metrics.py

#: What a row may be: its place in the file, for messages, and its columns.
Row = tuple[int, dict[str, Any]]


class TextTask(Task):
    """One or two texts and a label a row; classes None means regression."""

    def __init__(self, name: str, classes: list[str] | None, metric: str, train: Rows, dev: Rows) -> None:
        self.name, self.classes, self.metric = name, classes, metric
        self.splits = {"train": train, "dev": dev}
        self.num_labels = 1 if classes is None else len(classes)
        self.problem = "regression" if classes is None else "single_label_classification"
        self.notes: list[str] = []
        self._encoded: dict[str, dict[str, list[list[int]]]] = {}
        self._tokenizer: Any = None

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. Each class is in both parts, where it has two rows."""
        train = self.splits["train"]
        held = held_out([0] * len(train) if self.classes is None else train.labels, share, self.name)
        rest = sorted(set(range(len(train))) - set(held))
        self.splits = {"train": train.take(rest), "dev": train.take(held)}
        rows = f"{len(held)} of {len(train)} training rows"
        self.notes.append(f"dev: {rows} held out (task.holdout={share:g}), the dev set is not used")

    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        self._tokenizer = tokenizer
        for split, rows in self.splits.items():
            encoded = tokenizer(rows.texts, rows.pairs, truncation=True, max_length=max_length)
            self._encoded[split] = {key: encoded[key] for key in encoded}

    def lengths(self, split: str) -> Sequence[int]:
        return [len(ids) for ids in self._encoded[split]["input_ids"]]

    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        rows = {key: [values[i] for i in indices] for key, values in self._encoded[split].items()}
        batch = dict(self._tokenizer.pad(rows, padding="longest", return_tensors="np"))
        return batch | {"labels": self.labels(split)[list(indices)]}

    def predict(self, outputs: Array) -> Array:
        predictions: Array = outputs[:, 0] if self.classes is None else outputs.argmax(-1)
        return predictions

    def score(self, predictions: Array, labels: Array) -> float:
        from tasks.metrics import score  # imports evaluate, and with it torch: not for the plan

        return score(self.metric, predictions, labels)

    def labels(self, split: str) -> Array:
        return np.asarray(self.splits[split].labels, dtype=np.float32 if self.classes is None else np.int64)


def source(settings: Any) -> Source:
    """See tasks.source. Settings: train_file and dev_file, or hub (and hub_config, revision)."""
    if settings.get("prepare") == "reviews":
        from tasks import reviews

        return reviews.source()
    if settings.get("hub"):
        return Source(pinned=content(settings["hub"], settings.get("revision"), "dataset"))
    if not settings.get("train_file"):
        raise DataError(
            "the task names no data. Give task.train_file= (CSV, TSV, JSONL, parquet; task.dev_file=) or"
            " task.hub="
        )
    files = {"train": Path(settings["train_file"])}
    if settings.get("dev_file"):
        files["dev"] = Path(settings["dev_file"])
    for path in files.values():
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    return Source(files=files)


def load(settings: Any) -> TextTask:
    """See tasks.load. Without a dev file, a fixed tenth of the training rows is held out for it."""
    if settings.get("prepare") == "reviews":
        from tasks import reviews

        files = reviews.fetch(Path(settings["cache_dir"]), settings["train_rows"], settings["dev_rows"])
    elif settings.get("hub"):
        return _build(settings, *_from_hub(settings))
    else:
        files = dict(source(settings).files)
    train = list(read_file(files["train"]))
    return _build(
        settings,
        (files["train"], train),
        (files["dev"], list(read_file(files["dev"]))) if "dev" in files else None,
    )


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a CSV, TSV, JSONL or parquet file as (line, columns). Raises DataError with the line that is
    wrong."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
        return
    with open_text(path) as file:
        if path.suffix in (".jsonl", ".json"):
            for line, text in enumerate(file, 1):
                row = parse_json(text, f"{path} line {line}")
                if not isinstance(row, dict):
                    raise DataError(f"{path} line {line}: not a JSON object")
                yield line, row
        elif path.suffix in (".csv", ".tsv"):
            yield from read_rows(
                path, csv.DictReader(file, strict=True, **(TSV if path.suffix == ".tsv" else {}))
            )
        else:
            raise DataError(f"{path}: the name should end in .csv, .tsv, .jsonl or .parquet")


def read_rows(path: Path, reader: csv.DictReader) -> Iterator[Row]:
    """Rows of a CSV file, each with all its columns."""
    for row in reader:
        if None in row or None in row.values():
            raise DataError(f"{path} line {reader.line_num}: not {len(reader.fieldnames or [])} columns")
        yield reader.line_num, row


#: Benchmarks write TSV without quoting: a lone quotation mark is text.
TSV: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


#: Characters that a line may have, and a field of a CSV file; a longer one is refused before it fills memory.
LONGEST_LINE = 10_000_000
#: Characters that a file may have which is read as a whole: JSON that is no JSON lines, texts to be scored.
LONGEST_TEXT = 100_000_000


class Lines(Iterator[AnyStr]):
    """The lines of a file with their ends. number: how many have been read. Raises DataError for a line of
    more than LONGEST_LINE characters."""

    def __init__(self, path: Path, file: IO[AnyStr]) -> None:
        self.path, self.number = path, 0
        self._file: IO[AnyStr] = file

    def __next__(self) -> AnyStr:
        line = self._file.readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > LONGEST_LINE:
            much = f"more than {LONGEST_LINE:,} characters in one line"
            raise DataError(f"{self.path} line {self.number}: {much}. Does the file lack its ends of lines?")
        return line

    def read(self, instead: str = "") -> AnyStr:
        """What has not been read yet. Raises DataError for more than LONGEST_TEXT characters; `instead`: how
        to mend that."""
        text = self._file.read(LONGEST_TEXT + 1)
        if len(text) > LONGEST_TEXT:
            much = f"more than {LONGEST_TEXT:,} characters in a file that is read as a whole"
            raise DataError(f"{self.path}: {much}{instead and '. '}{instead}")
        return text


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[Lines[str]]:
    """Opens UTF-8 text with or without a byte order mark; what cannot be read becomes a DataError."""
    csv.field_size_limit(LONGEST_LINE)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = Lines(path, file)
            try:
                yield lines
            except csv.Error as error:
                raise DataError(f"{path} line {lines.number}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a parquet file as (row number from 1, columns)."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    yield from enumerate(rows, 1)


Part = tuple[Path | str, list[Row]]


def _from_hub(settings: Any) -> tuple[Part, Part]:
    from datasets import load_dataset

    parts = []
    for split in (settings["train_split"], settings["dev_split"]):
        where = f"{settings['hub']}:{split}"
        try:
            data = load_dataset(
                settings["hub"], settings.get("hub_config"), split=split, revision=settings.get("revision")
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{where}: {reason}. Or give files: task.train_file= and task.dev_file="
            ) from None
        parts.append((where, list(enumerate(data, 1))))
    return parts[0], parts[1]


def _build(settings: Any, train: Part, dev: Part | None) -> TextTask:
    notes = []
    if dev is None:
        where, rows = train
        held_out = set(range(0, len(rows), 10))
        dev = (where, [row for i, row in enumerate(rows) if i in held_out])
        train = (where, [row for i, row in enumerate(rows) if i not in held_out])
        notes.append(f"no dev file: {len(held_out)} of the {len(rows)} training rows are held out for it")
    names = {key: settings.get(key) for key in ("text", "text_pair")} | {"label": settings["label_column"]}
    for where, rows in (train, dev):
        if not rows:
            raise DataError(f"{where}: no rows")
        for line, row in rows:
            for column in filter(None, names.values()):
                if column not in row:  # of all rows, but where each names its own
                    place = f" line {line}" if str(where).endswith((".jsonl", ".json")) else ""
                    raise DataError(f"{where}{place}: no column {column!r}. It has: {listed(row)}")
                if row[column] is None:
                    raise DataError(f"{where} line {line}: nothing in column {column!r}")
    labels = [(line, row[names["label"]]) for line, row in train[1]]
    regression = settings.get("regression")
    if regression is None:
        regression = _is_regression(train[0], labels)
    classes = None if regression else sorted({str(x) for _, x in labels}, key=_place)
    if classes is not None and len(classes) < 2:
        raise DataError(f"{train[0]}: only one label, {quoted(classes[0])}: nothing to learn")
    splits = []
    for (where, rows), count in ((train, settings.get("train_rows")), (dev, settings.get("dev_rows"))):
        values = [parse_label(row[names["label"]], classes, where, line) for line, row in rows]
        pairs = [str(row[names["text_pair"]]) for _, row in rows] if names["text_pair"] else None
        splits.append(
            subset(Rows([str(row[names["text"]]) for _, row in rows], pairs, values), count, settings["name"])
        )
    metric = settings.get("metric") or ("pearson" if classes is None else "accuracy")
    if metric not in METRICS:
        raise DataError(f"no metric {metric!r} (task.metric). Known: {', '.join(METRICS)}")
    task = TextTask(settings["name"], classes, metric, *splits)
    task.notes, task.block = notes, block(settings)
    return task


def _is_regression(where: Path | str, labels: list[tuple[int, Any]]) -> bool:
    """Whether labels (line, label) are numbers of which some have a fractional part. Raises DataError where a
    label that is not a finite number would make classes of such ones, or be a class beside whole numbers."""
    strange = next(((line, x) for line, x in labels if not _is_number(x)), None)
    fraction = next((x for _, x in labels if _is_number(x) and float(x) % 1), None)
    if strange is None:
        return fraction is not None
    if fraction is None and any(_number(x) is None for _, x in labels):
        return False
    line, value = strange
    others = "are numbers" if fraction is None else f"have a fractional part ({quoted(fraction)})"
    mend = "Mend it, or say that all are classes: task.regression=false"
    what = f"label {quoted(value)} is not a finite number"
    raise DataError(f"{where} line {line}: {what}, and others {others}. {mend}")


def parse_label(value: Any, classes: list[str] | None, where: Path | str, line: int) -> int | float:
    """A class index, or for classes None a number. Raises DataError with file and line for any other label,
    and for NaN and infinity in a file that has numbers, where they stand for what is missing."""
    number = _number(value)
    if number is None and classes is None:
        raise DataError(f"{where} line {line}: label {quoted(value)} is not a number")
    if not _is_number(value) and (classes is None or isinstance(value, float)):
        raise DataError(f"{where} line {line}: label {quoted(value)} is not a finite number")
    if classes is None:
        if abs(number := float(value)) > float(np.finfo(np.float32).max):
            large = f"label {quoted(value)} is too large for a number of 32 bits"
            raise DataError(f"{where} line {line}: {large}")
        return number
    if str(value) not in classes:
        raise DataError(f"{where} line {line}: label {quoted(str(value))} is not one of {listed(classes)}")
    return classes.index(str(value))


def _place(label: str) -> tuple[bool, float, str]:
    """Where a class stands: numbers by their size, then words. NaN has no size."""
    return (False, float(label), label) if _is_number(label) else (True, 0.0, label)


def _is_number(value: Any) -> bool:
    number = _number(value)
    return number is not None and bool(np.isfinite(number))


def _number(value: Any) -> float | None:
    """A number, which may be NaN or infinite; None for anything else."""
    try:
        return float(value)
    except OverflowError:  # a whole number without end
        return float("inf")
    except (TypeError, ValueError):
        return None
