"""Text classification and regression from any CSV, TSV, JSONL or parquet file, or hub data set.

Labels that are whole numbers or words are classes; labels with a fractional part make it a regression
(`task.regression=` decides where that guess is wrong). The demo's reviews are one such task (tasks/reviews.py).
"""

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tasks.base import Array, DataError, Rows, Source, Task, block, held_out, subset
from tasks.hub import content

PROTOCOL = 1

METRICS = ("accuracy", "matthews", "pearson")  # the files of tasks/metrics

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
        raise DataError("the task names no data. Give task.train_file= (CSV, TSV, JSONL, parquet; task.dev_file=) or task.hub=")
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
    return _build(settings, (files["train"], train), (files["dev"], list(read_file(files["dev"]))) if "dev" in files else None)


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a CSV, TSV, JSONL or parquet file as (line, columns). Raises DataError with the line that is wrong."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
        return
    with open_text(path) as file:
        if path.suffix in (".jsonl", ".json"):
            for line, text in enumerate(file, 1):
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise DataError(f"{path} line {line}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path} line {line}: not a JSON object")
                yield line, row
        elif path.suffix in (".csv", ".tsv"):
            reader = csv.DictReader(file, strict=True, **(TSV if path.suffix == ".tsv" else {}))
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path} line {reader.line_num}: not {len(reader.fieldnames or [])} columns")
                yield reader.line_num, row
        else:
            raise DataError(f"{path}: the name should end in .csv, .tsv, .jsonl or .parquet")


#: Benchmarks write TSV without quoting: a lone quotation mark is text.
TSV: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens UTF-8 text with or without a byte order mark; what cannot be read becomes a DataError."""
    csv.field_size_limit(10_000_000)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from None


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
            data = load_dataset(settings["hub"], settings.get("hub_config"), split=split, revision=settings.get("revision"))
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{where}: {reason}. Or give files: task.train_file= and task.dev_file=") from None
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
                    raise DataError(f"{where}{place}: no column {column!r}. It has: {', '.join(map(str, row))}")
                if row[column] is None:
                    raise DataError(f"{where} line {line}: nothing in column {column!r}")
    labels = [row[names["label"]] for _, row in train[1]]
    regression = settings.get("regression")
    if regression is None:
        regression = all(_is_number(x) for x in labels) and any(float(x) % 1 for x in labels)
    classes = None if regression else sorted({str(x) for x in labels}, key=lambda x: (not _is_number(x), _number(x), x))
    if classes is not None and len(classes) < 2:
        raise DataError(f"{train[0]}: only one label, {classes[0]!r}: nothing to learn")
    splits = []
    for (where, rows), count in ((train, settings.get("train_rows")), (dev, settings.get("dev_rows"))):
        values = [parse_label(row[names["label"]], classes, where, line) for line, row in rows]
        pairs = [str(row[names["text_pair"]]) for _, row in rows] if names["text_pair"] else None
        splits.append(subset(Rows([str(row[names["text"]]) for _, row in rows], pairs, values), count, settings["name"]))
    metric = settings.get("metric") or ("pearson" if classes is None else "accuracy")
    if metric not in METRICS:
        raise DataError(f"no metric {metric!r} (task.metric). Known: {', '.join(METRICS)}")
    task = TextTask(settings["name"], classes, metric, *splits)
    task.notes, task.block = notes, block(settings)
    return task


def parse_label(value: Any, classes: list[str] | None, where: Path | str, line: int) -> int | float:
    """A class index, or for classes None a number. Raises DataError with file and line for any other label."""
    if classes is None:
        if not _is_number(value):
            raise DataError(f"{where} line {line}: label {value!r} is not a number")
        return float(value)
    if str(value) not in classes:
        raise DataError(f"{where} line {line}: label {str(value)!r} is not one of {', '.join(classes)}")
    return classes.index(str(value))


def _is_number(value: Any) -> bool:
    return bool(np.isfinite(_number(value)))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("inf")
