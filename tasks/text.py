"""Text classification and regression from any CSV, TSV, JSONL or parquet file, or hub
data set.

Labels that are whole numbers or words are classes. Labels with a fractional part make a
regression (`task.regression=` overrides this). A label that is not a finite number is
refused among numbers, since one missing value would turn a regression into classes. The
demo's reviews are one such task (tasks/reviews.py)."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks import reviews
from tasks.base import (
    LISTED,
    Array,
    DataError,
    Rows,
    Source,
    Task,
    block,
    check,
    first_line,
    fixed_subset,
    held_out,
    listed,
    quoted,
    require_columns,
)
from tasks.fetch import content
from tasks.files import open_text, read_parquet, validated

PROTOCOL = 1

#: The settings that name columns.
SETTINGS = ("task.text=", "task.text_pair=", "task.label_column=", "task.id_column=")
# those of tasks/metrics.py
METRICS = ("accuracy", "matthews", "macro_f1", "balanced_accuracy", "pearson")
#: Characters of a text in `about`.
SHOWN_TEXT = 200
LARGEST = float(np.finfo(np.float32).max)
#: Labels of a larger mean or spread are far from what a new head answers, which is
#: about 0.
LARGE = 10.0

#: The number of a row's line in its file, and the row's values by column.
Row = tuple[int, dict[str, Any]]
#: The name of a file or of a hub split, for messages, and its rows.
Table = tuple[Path | str, list[Row]]


class TextTask(Task):
    """One or two texts and a label for each row. classes: names of the labels; None for
    a regression."""

    def __init__(
        self,
        settings: Any,
        classes: list[str] | None,
        metric: str,
        splits: Mapping[str, Rows],
    ) -> None:
        self.name, self.block = settings["name"], block(settings)
        self.classes, self.metric, self.splits = classes, metric, splits
        self.num_labels = 1 if classes is None else len(classes)
        self.problem = (
            "regression" if classes is None else "single_label_classification"
        )
        self.notes: list[str] = []
        self._scales = bool(settings.get("scale_labels"))
        self._shows = settings.get("keep_text", True)
        self._encoded: dict[str, dict[str, list[list[int]]]] = {}
        self._tokenizer: Any = None

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. Each class is in both parts, where it has two rows."""
        train = self.splits["train"]
        held = held_out(
            [0] * len(train) if self.classes is None else train.labels, share, self.name
        )
        rest = sorted(set(range(len(train))) - set(held))
        self.splits = {"train": train.take(rest), "dev": train.take(held)}
        rows = f"{len(held)} of {len(train)} training rows"
        self.notes.append(
            f"dev: {rows} held out (task.holdout={share:g}), the dev set is not used"
        )

    def prepare(
        self, tokenizer: Any, max_length: int, positions: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        if self._scales and "train" in self.splits:
            self.scaling = mean_and_spread(self.splits["train"].labels)
        for split, rows in self.splits.items():
            encoded = tokenizer(
                rows.texts, rows.pairs, truncation=True, max_length=max_length
            )
            self._encoded[split] = {key: encoded[key] for key in encoded}

    def cut(self, split: str) -> int:
        """How many of a prepared split's rows were longer than `prepare` left them."""
        rows, lengths = self.splits[split], self.lengths(split)
        longest = [i for i, length in enumerate(lengths) if length == max(lengths)]
        whole = [
            self._tokenizer(rows.texts[i], rows.pairs and rows.pairs[i])["input_ids"]
            for i in longest
        ]
        return sum(len(ids) > max(lengths) for ids in whole)

    def lengths(self, split: str) -> Sequence[int]:
        return [len(ids) for ids in self._encoded[split]["input_ids"]]

    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        rows = {
            key: [values[i] for i in indices]
            for key, values in self._encoded[split].items()
        }
        batch = dict(self._tokenizer.pad(rows, padding="longest", return_tensors="np"))
        labels = self.labels(split)[list(indices)]
        if self.scaling:
            mean, spread = self.scaling
            labels = ((labels.astype(np.float64) - mean) / spread).astype(np.float32)
        return batch | {"labels": labels}

    def labels(self, split: str) -> Array:
        return np.asarray(
            self.splits[split].labels,
            dtype=np.float32 if self.classes is None else np.int64,
        )

    def predict(self, outputs: Array) -> Array:
        """See Task.predict; in the labels' own units."""
        mean, spread = self.scaling or (0.0, 1.0)
        predictions = super().predict(outputs)
        return predictions * spread + mean if self.scaling else predictions

    def about(self, split: str) -> Mapping[str, Sequence[Any]]:
        """File, row, id and the beginnings of the texts; without these where
        task.keep_text is false."""
        rows = self.splits[split]
        texts = {"text": rows.texts, "text_pair": rows.pairs} if self._shows else {}
        return rows.about | {
            key: [text[:SHOWN_TEXT] for text in of] for key, of in texts.items() if of
        }


def source(settings: Any) -> Source:
    """See tasks.source. Settings: train_file and dev_file, or hub (and hub_config,
    revision)."""
    if settings.get("prepare") == "reviews":
        return reviews.source()
    if settings.get("hub"):
        return Source(
            pinned=content(settings["hub"], settings.get("revision"), "dataset")
        )
    if not settings.get("train_file"):
        raise DataError("the task names no data. Give task.train_file= or task.hub=")
    files = {"train": Path(settings["train_file"])}
    if settings.get("dev_file"):
        files["dev"] = Path(settings["dev_file"])
    for part, path in files.items():
        if not path.is_file():
            raise DataError(f"{path}: no such file (task.{part}_file)")
    return Source(files=files)


def load(settings: Any) -> TextTask:
    """See tasks.load. Without a dev file, a fixed tenth of the training rows is held
    out for it."""
    name, label, tables, notes = (
        settings["name"],
        settings["label_column"],
        _read(settings),
        [],
    )
    where, training = tables["train"]
    if "dev" not in tables:
        if len(training) == 1:
            raise DataError(
                f"{where}: one row, and without a dev file (task.dev_file) two are the least"
            )
        held = training[::10]
        of = f"every tenth, {len(held)} of the {len(training)} training rows"
        notes.append(f"no dev file: {of} are held out for it")
        training = [row for i, row in enumerate(training) if i % 10]
    for table in tables.values():
        check_columns(table, settings)
    classes = _classes((where, training), label, settings.get("regression"))
    metric = settings.get("metric") or ("pearson" if classes is None else "accuracy")
    if metric not in METRICS:
        raise DataError(
            f"no metric {metric!r} (task.metric). Known: {', '.join(METRICS)}"
        )
    if (classes is None) != (metric == "pearson"):
        kind = "numbers" if classes is None else "classes"
        raise DataError(f"{where}: its labels are {kind}: not task.metric={metric}")
    if settings.get("scale_labels"):
        check(
            settings, "scale_labels", settings["scale_labels"] is True, "true or false"
        )
        check(
            settings,
            "scale_labels",
            classes is None,
            "false: its labels are classes, not numbers",
        )
    splits = {
        split: make_rows(table, settings, classes) for split, table in tables.items()
    }
    if "dev" not in splits:
        whole, every = splits["train"], range(len(splits["train"]))
        splits = {
            "train": whole.take([i for i in every if i % 10]),
            "dev": whole.take(every[::10]),
        }
    for split, rows in splits.items():
        splits[split] = rows.take(
            fixed_subset(len(rows), settings.get(f"{split}_rows"), name)
        )
    task = TextTask(settings, classes, metric, splits)
    task.notes = notes
    if classes is None and not settings.get("scale_labels"):
        mean, spread = mean_and_spread(splits["train"].labels)
        if max(abs(mean), spread) > LARGE:
            numbers = f"a regression whose labels have the mean {mean:.6g} and the spread {spread:.6g}"
            task.advice = [
                f"{name}: {numbers}: task.scale_labels=true trains on scaled ones"
            ]
    if classes and not settings.get("prepare"):
        more = f" and {len(classes) - LISTED} more" if len(classes) > LISTED else ""
        task.advice = [
            f"{name}: {len(classes)} classes: {', '.join(map(quoted, classes[:LISTED]))}{more}"
        ]
        if absent := len({*range(len(classes))} - {*splits["dev"].labels}):
            task.advice.append(f"{name}: {absent} of them have no dev row")
    return task


def check_columns(table: Table, settings: Any, labelled: bool = True) -> None:
    """Raises DataError for a table without rows, and with file and line for a row
    without a column that the settings name, or with nothing in it. labelled: whether
    rows need a label."""
    (where, rows), label = table, settings["label_column"] if labelled else None
    columns = [c for c in (settings["text"], settings.get("text_pair"), label) if c]
    named = [*columns, *filter(None, [settings.get("id_column")])]
    if not rows:
        raise DataError(f"{where}: no rows")
    own_columns = str(where).endswith((".jsonl", ".json"))  # each row names its own
    for line, row in rows:
        place = f"{where} line {line}" if own_columns else where
        require_columns(place, row, named, f". They are named by {', '.join(SETTINGS)}")
        for column in columns:
            value = row[column]
            # NaN
            missing = not str(value).strip() if column == label else value != value
            if value is None or missing:
                raise DataError(f"{where} line {line}: nothing in column {column!r}")


def numbered(where: Path | str, count: int) -> dict[str, list[Any]]:
    """`Rows.about` of all rows of a file, or of a hub split."""
    return {
        "file": [getattr(where, "name", where)] * count,
        "row": list(range(1, count + 1)),
    }


def make_rows(
    table: Table, settings: Any, classes: list[str] | None, labelled: bool = True
) -> Rows:
    """The rows of a table that `check_columns` has checked. classes: as in TextTask.
    labelled: whether they have labels, which are read and checked then."""
    (where, rows), pair, own_id = (
        table,
        settings.get("text_pair"),
        settings.get("id_column"),
    )
    label, texts = (
        settings["label_column"],
        [str(row[settings["text"]]) for _, row in rows],
    )
    labels: Any = [
        parse_label(row[label], classes, where, line) for line, row in rows if labelled
    ]
    about = numbered(where, len(rows)) | (
        {"id": [row[own_id] for _, row in rows]} if own_id else {}
    )
    return Rows(
        texts, [str(row[pair]) for _, row in rows] if pair else None, labels, about
    )


def _read(settings: Any) -> dict[str, Table]:
    """The rows of each split."""
    if settings.get("hub"):
        return {
            split: _from_hub(settings, settings[f"{split}_split"])
            for split in ("train", "dev")
        }
    if settings.get("prepare") == "reviews":
        return reviews.splits(settings["train_rows"], settings["dev_rows"])
    return {
        split: (path, list(read_file(path)))
        for split, path in source(settings).files.items()
    }


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a CSV, TSV, JSONL or parquet file. Raises DataError with the line that is
    wrong."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        yield from read_csv(path, TSV if path.suffix == ".tsv" else {})
    elif path.suffix in (".jsonl", ".json"):
        with open_text(path) as file:
            for line, text in enumerate(file, 1):
                yield line, validated(dict[str, Any], text, f"{path} line {line}")
    else:
        raise DataError(
            f"{path}: the name should end in .csv, .tsv, .jsonl or .parquet"
        )


#: Benchmarks write TSV without quoting: a lone quotation mark is text.
TSV: Mapping[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


def read_csv(
    path: Path, form: Mapping[str, Any], header: Sequence[str] | None = None
) -> Iterator[Row]:
    """Rows of a CSV file. form: of csv.reader. header: the columns where the file names
    none. Raises DataError for a row with another number of columns than the header."""
    csv.field_size_limit(10_000_000)
    with open_text(path) as file:
        reader = csv.DictReader(file, header, strict=True, **form)
        try:
            for row in reader:
                if None in row or None in row.values():
                    count = len(reader.fieldnames or [])
                    tabs = (
                        ". A .tsv has no quoting, a .csv has"
                        if form.get("delimiter") == "\t"
                        else ""
                    )
                    raise DataError(
                        f"{path} line {reader.line_num}: not {count} columns{tabs}"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path} line {reader.reader.line_num}: {error}") from None


def _from_hub(settings: Any, split: str) -> Table:
    from datasets import load_dataset

    where = f"{settings['hub']}:{split}"
    choice = {"split": split, "revision": settings.get("revision")}
    try:
        return where, list(
            enumerate(
                load_dataset(settings["hub"], settings.get("hub_config"), **choice), 1
            )
        )
    except (OSError, ValueError, RuntimeError) as error:
        instead = "Or give files: task.train_file= and task.dev_file="
        raise DataError(f"{where}: {first_line(error)}. {instead}") from None


def _classes(train: Table, column: str, regression: bool | None) -> list[str] | None:
    """The names of the classes, numbers by size and then words; None for a
    regression."""
    where, labels = train[0], [(line, row[column]) for line, row in train[1]]
    if _is_regression(where, labels) if regression is None else regression:
        return None
    names = {str(label) for _, label in labels}
    numbers = sorted(filter(_is_finite, names), key=lambda name: (float(name), name))
    classes = numbers + sorted(names.difference(numbers))
    if len(classes) < 2:
        raise DataError(
            f"{where}: only one label, {quoted(classes[0])}: nothing to learn"
        )
    return classes


def _is_regression(where: Path | str, labels: list[tuple[int, Any]]) -> bool:
    """Whether labels (line, label) are numbers, some with a fractional part. Raises
    DataError for a word among such numbers, and for NaN or infinity among any numbers:
    it may stand for a missing value."""
    odd = next(((line, label) for line, label in labels if not _is_finite(label)), None)
    fraction = next(
        (label for _, label in labels if _is_finite(label) and float(label) % 1), None
    )
    if odd is None:
        return fraction is not None
    if fraction is None and any(_number(label) is None for _, label in labels):
        return False
    others = (
        "are numbers"
        if fraction is None
        else f"have a fractional part ({quoted(fraction)})"
    )
    problem = f"label {quoted(odd[1])} is not a finite number, and others {others}"
    raise DataError(
        f"{where} line {odd[0]}: {problem}. For classes: task.regression=false"
    )


def parse_label(
    value: Any, classes: list[str] | None, where: Path | str, line: int
) -> int | float:
    """The index of a class, or a number where classes is None. Raises DataError with
    file and line for any other label, also for NaN where a file has numbers: it stands
    for a missing value."""
    number = _number(value)
    if classes is None and number is not None and abs(number) <= LARGEST:
        return number
    finite = not isinstance(value, float) or math.isfinite(value)
    if classes is not None and finite and str(value) in classes:
        return classes.index(str(value))
    kind = (
        f"one of {listed(classes)}"
        if classes and finite
        else "a finite number of 32 bits"
    )
    numeric = (
        number is not None
        and classes
        and all(_number(name) is not None for name in classes)
    )
    mend = ". Numbers to predict: task.regression=true" if numeric else ""
    raise DataError(f"{where} line {line}: label {quoted(value)} is not {kind}{mend}")


def mean_and_spread(labels: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the labels of a regression; the deviation of equal
    labels is 1."""
    numbers = np.asarray(labels, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std()) or 1.0


def _is_finite(value: Any) -> bool:
    number = _number(value)
    return number is not None and math.isfinite(number)


def _number(value: Any) -> float | None:
    """The value as a number, which may be NaN or infinite; None for anything else."""
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf
    except (TypeError, ValueError):
        return None
