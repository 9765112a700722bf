"""Text classification and regression from any CSV, TSV, JSONL or parquet file, or hub
data set.

Labels that are whole numbers or words are classes. Labels with a fractional part make a
regression (`task.regression=` overrides this). A label that is not a finite number is
refused among numbers, since one missing value would turn a regression into classes. The
demo's reviews are one such task (tasks/reviews.py)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import reviews
from tasks.base import (
    LISTED_NAMES,
    Array,
    DataError,
    Rows,
    Settings,
    Source,
    Task,
    block_size,
    check_setting,
    draw_folds,
    draw_held_out_rows,
    fixed_subset,
    quoted,
    require_columns,
)
from tasks.fetch import pinned_content
from tasks.tables import (
    DataTable,
    class_names,
    mean_and_spread,
    parse_label,
    read_hub,
    read_table,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROTOCOL = 1

#: The settings that name columns.
COLUMN_SETTINGS = (
    "task.text=",
    "task.text_pair=",
    "task.label_column=",
    "task.id_column=",
)
#: The metrics of tasks/metrics.py that a user may choose.
METRICS = ("accuracy", "matthews", "macro_f1", "balanced_accuracy", "pearson")
#: How many characters of a text `TextTask.about` shows.
SHOWN_TEXT = 200
#: Labels whose mean or spread is larger are far from what a new head answers, which is
#: about 0.
LARGE_LABEL = 10.0
#: Without a dev file, the first of every so many training rows is held out as a dev row.
DEV_STRIDE = 10


class TextTask(Task):
    """One or two texts and a label for each row. classes: the names of the classes, in the
    order of their indices; None for a regression. metric: one of METRICS."""

    def __init__(
        self,
        settings: Settings,
        classes: list[str] | None,
        metric: str,
        splits: Mapping[str, Rows],
    ) -> None:
        self.name = settings["name"]
        self.block = block_size(settings)
        self.classes = classes
        self.metric = metric
        self.splits = splits
        self.num_labels = 1
        self.problem = "regression"
        if classes is not None:
            self.num_labels = len(classes)
            self.problem = "single_label_classification"
        self.notes = []
        #: Whether the dev rows come from the training file.
        self.takes_dev_from_train = False
        self._scales_labels = bool(settings.get("scale_labels"))
        self._shows_texts = settings.get("keep_text", True)
        #: By split, the tokenizer's output: a list for each row, by the model's arguments.
        self._encoded: dict[str, dict[str, list[list[int]]]] = {}

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. Each class is in both parts, where it has two rows; the rows
        of a regression are one group."""
        train = self.splits["train"]
        groups = [0] * len(train) if self.classes is None else train.labels
        dev_rows = draw_held_out_rows(groups, share, self.name)
        train_rows = sorted(set(range(len(train))) - set(dev_rows))
        self.splits = {"train": train.take(train_rows), "dev": train.take(dev_rows)}
        self.notes.append(
            f"dev: {len(dev_rows)} of {len(train)} training rows held out "
            f"(task.holdout={share:g}), the dev set is not used"
        )

    def take_fold(self, fold: int, folds: int) -> None:
        """See Task.take_fold. Without a dev file, the rows that were held out for it
        are in the folds, too. Each class is in every part, where it has enough rows; the
        rows of a regression are one group."""
        rows = self.splits["train"]
        if self.takes_dev_from_train:
            rows = rows.join(self.splits["dev"])
        groups = [0] * len(rows) if self.classes is None else rows.labels
        train_rows = []
        dev_rows = []
        for row, fold_of_row in enumerate(draw_folds(groups, folds, self.name)):
            if fold_of_row == fold:
                dev_rows.append(row)
            else:
                train_rows.append(row)
        self.splits = {"train": rows.take(train_rows), "dev": rows.take(dev_rows)}
        self.notes.append(
            f"dev: fold {fold} of {folds}, {len(dev_rows)} of {len(rows)} training rows"
        )

    def prepare(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        positions: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        # There are no training rows where a finished run predicts new ones
        if self._scales_labels and "train" in self.splits:
            self.scaling = mean_and_spread(self.splits["train"].labels)
        for split, rows in self.splits.items():
            encoded = tokenizer(
                rows.texts, rows.pairs, truncation=True, max_length=max_length
            )
            self._encoded[split] = {key: encoded[key] for key in encoded}

    def count_cut_rows(self, split: str) -> int:
        """How many rows of a split `prepare` has cut off at max_length."""
        rows = self.splits[split]
        lengths = self.lengths(split)
        longest = max(lengths)
        count = 0
        for i, length in enumerate(lengths):
            # A cut row has max_length tokens, and no row has more
            if length == longest:
                encoded = self._tokenizer(rows.texts[i], rows.pairs and rows.pairs[i])
                count += len(encoded["input_ids"]) > longest
        return count

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
        dtype = np.float32 if self.classes is None else np.int64
        return np.asarray(self.splits[split].labels, dtype=dtype)

    def predict(self, outputs: Array) -> Array:
        """See Task.predict; in the labels' own units."""
        predictions = super().predict(outputs)
        if self.scaling:
            mean, spread = self.scaling
            predictions = predictions * spread + mean
        return predictions

    def about(self, split: str) -> Mapping[str, Sequence[Any]]:
        """File, row, id and the beginning of each text. task.keep_text=false leaves the
        texts out."""
        rows = self.splits[split]
        columns = dict(rows.about)
        if self._shows_texts:
            for key, texts in (("text", rows.texts), ("text_pair", rows.pairs)):
                if texts:
                    columns[key] = [text[:SHOWN_TEXT] for text in texts]
        return columns


# --- loading


def source(settings: Settings) -> Source:
    """See tasks.source. Settings: train_file and dev_file, or hub (and hub_config,
    revision)."""
    if settings.get("prepare") == "reviews":
        return reviews.source()
    if settings.get("hub"):
        pinned = pinned_content(settings["hub"], settings.get("revision"), "dataset")
        return Source(pinned=pinned)
    if not settings.get("train_file"):
        raise DataError("the task names no data. Give task.train_file= or task.hub=")
    files = {"train": Path(settings["train_file"])}
    if settings.get("dev_file"):
        files["dev"] = Path(settings["dev_file"])
    for split, path in files.items():
        if not path.is_file():
            raise DataError(f"{path}: no such file (task.{split}_file)")
    return Source(files=files)


def load(settings: Settings) -> TextTask:
    """See tasks.load. Without a dev file, a fixed tenth of the training rows is held
    out for it."""
    tables = _read_tables(settings)
    train_table = tables["train"]
    notes = []
    if "dev" not in tables:
        note = _note_of_held_out_rows(train_table)
        if settings.get("folds") is None:  # take_fold evaluates on other rows
            notes.append(note)
        # The rows that are trained on decide about the classes, as they do with a dev file
        train_rows = [row for i, row in enumerate(train_table.rows) if i % DEV_STRIDE]
        train_table = DataTable(train_table.place, train_rows)
    for table in tables.values():
        check_columns(table, settings)
    classes = class_names(
        train_table, settings["label_column"], settings.get("regression")
    )
    metric = _metric(settings, train_table, classes)
    if settings.get("scale_labels"):
        is_true = settings["scale_labels"] is True
        check_setting(settings, "scale_labels", is_true, "true or false")
        expected = "false: its labels are classes, not numbers"
        check_setting(settings, "scale_labels", classes is None, expected)
    splits = _splits(settings, tables, classes)
    task = TextTask(settings, classes, metric, splits)
    task.notes = notes
    task.takes_dev_from_train = "dev" not in tables
    task.advice = _advice(settings, classes, splits)
    if settings.get("folds") is not None and settings.get("dev_file"):
        task.advice.append(
            f"task.folds divides task.train_file alone: {settings['dev_file']} is not used"
        )
    return task


def _read_tables(settings: Settings) -> dict[str, DataTable]:
    """The rows of each split: "train", and "dev" where the settings name dev rows."""
    if settings.get("hub"):
        return {
            split: read_hub(settings, settings[f"{split}_split"])
            for split in ("train", "dev")
        }
    if settings.get("prepare") == "reviews":
        return reviews.splits(settings["train_rows"], settings["dev_rows"])
    return {
        split: DataTable(path, list(read_table(path)))
        for split, path in source(settings).files.items()
    }


def _note_of_held_out_rows(table: DataTable) -> str:
    """The record's note where there is no dev file. Raises DataError for a table of one
    row, which cannot be divided."""
    count = len(table.rows)
    if count == 1:
        raise DataError(
            f"{table.place}: one row, and without a dev file (task.dev_file) two are the "
            "least"
        )
    held_out_rows = len(table.rows[::DEV_STRIDE])
    return (
        f"no dev file: every tenth, {held_out_rows} of the {count} training rows are held out "
        "for it"
    )


def _metric(settings: Settings, table: DataTable, classes: list[str] | None) -> str:
    """The metric that the settings name, or by default pearson for a regression and
    accuracy for classes. Raises DataError for one that does not fit the labels."""
    default = "pearson" if classes is None else "accuracy"
    metric: str = settings.get("metric") or default
    if metric not in METRICS:
        metrics = ", ".join(METRICS)
        raise DataError(f"no metric {metric!r} (task.metric). Known: {metrics}")
    if (classes is None) != (metric == "pearson"):
        kind = "numbers" if classes is None else "classes"
        raise DataError(
            f"{table.place}: its labels are {kind}: not task.metric={metric}"
        )
    return metric


def _splits(
    settings: Settings, tables: Mapping[str, DataTable], classes: list[str] | None
) -> dict[str, Rows]:
    """The rows of train and dev. Without a dev table, every tenth training row is a dev
    row. A split has a fixed subset where task.train_rows or task.dev_rows gives a size."""
    splits = {
        split: make_rows(table, settings, classes) for split, table in tables.items()
    }
    if "dev" not in splits:
        rows = splits["train"]
        indices = range(len(rows))
        splits = {
            "train": rows.take([i for i in indices if i % DEV_STRIDE]),
            "dev": rows.take(indices[::DEV_STRIDE]),
        }
    for split, rows in splits.items():
        size = settings.get(f"{split}_rows")
        splits[split] = rows.take(fixed_subset(len(rows), size, settings["name"]))
    return splits


def _advice(
    settings: Settings, classes: list[str] | None, splits: Mapping[str, Rows]
) -> list[str]:
    """See Task.advice."""
    name = settings["name"]
    if classes is None:
        mean, spread = mean_and_spread(splits["train"].labels)
        if settings.get("scale_labels") or max(abs(mean), spread) <= LARGE_LABEL:
            return []
        return [
            f"{name}: a regression whose labels have the mean {mean:.6g} and the spread "
            f"{spread:.6g}: task.scale_labels=true trains on scaled ones"
        ]
    if settings.get("prepare"):  # the demo's reviews, whose classes are known
        return []
    names = ", ".join(quoted(label) for label in classes[:LISTED_NAMES])
    if len(classes) > LISTED_NAMES:
        names += f" and {len(classes) - LISTED_NAMES} more"
    advice = [f"{name}: {len(classes)} classes: {names}"]
    absent = set(range(len(classes))) - set(splits["dev"].labels)
    if absent and settings.get("folds") is None:  # take_fold evaluates on other rows
        advice.append(f"{name}: {len(absent)} of them have no dev row")
    return advice


# --- rows


def check_columns(table: DataTable, settings: Settings, labelled: bool = True) -> None:
    """Raises DataError for a table without rows, and, with file and line, for a row that
    lacks a column named by the settings or has nothing in its text or label. labelled:
    whether rows need a label."""
    place, rows = table
    if not rows:
        raise DataError(f"{place}: no rows")
    label = settings["label_column"] if labelled else None
    columns = [settings["text"], settings.get("text_pair"), label]
    columns = [column for column in columns if column]
    named_columns = list(columns)
    if settings.get("id_column"):
        named_columns.append(settings["id_column"])
    # Each object of a JSONL file names its own columns
    is_jsonl = str(place).endswith((".jsonl", ".json"))
    hint = f". They are named by {', '.join(COLUMN_SETTINGS)}"
    for line, row in rows:
        location = f"{place} line {line}" if is_jsonl else place
        require_columns(location, row, named_columns, hint)
        for column in columns:
            if _is_missing(row[column], is_label=column == label):
                raise DataError(f"{place} line {line}: nothing in column {column!r}")


def _is_missing(value: Any, is_label: bool) -> bool:
    """Whether a column holds nothing: None, a label that is only blanks, or a NaN where a
    text should be. An empty text is a text."""
    if value is None:
        return True
    if is_label:
        return not str(value).strip()
    is_nan: bool = value != value  # only NaN differs from itself
    return is_nan


def locate_rows(place: Path | str, count: int) -> dict[str, list[Any]]:
    """Where each row of a file, or of a split on the hub, is from, as `Rows.about` has it:
    the column "file" repeats its name, "row" numbers the rows from 1.

    place: the file, or the split's name. count: how many rows it has."""
    name = place.name if isinstance(place, Path) else place
    return {"file": [name] * count, "row": list(range(1, count + 1))}


def make_rows(
    table: DataTable,
    settings: Settings,
    classes: list[str] | None,
    labelled: bool = True,
) -> Rows:
    """The rows of a table that `check_columns` has checked. classes: the names of the
    labels, None for a regression. labelled: whether the table has labels; they are then
    read and checked."""
    place, rows = table
    texts = [str(row[settings["text"]]) for _, row in rows]
    pairs = None
    if settings.get("text_pair"):
        pairs = [str(row[settings["text_pair"]]) for _, row in rows]
    labels: Any = []
    if labelled:
        column = settings["label_column"]
        labels = [parse_label(row[column], classes, place, line) for line, row in rows]
    about = locate_rows(place, len(rows))
    if settings.get("id_column"):
        about["id"] = [row[settings["id_column"]] for _, row in rows]
    return Rows(texts, pairs, labels, about)
