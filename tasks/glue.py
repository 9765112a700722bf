"""GLUE (Wang et al. 2019): sst2, mrpc, cola, qnli, rte, stsb, and mnli as a start for
one of LoRA's rows.

From the hub at a pinned revision, or from a local folder of GLUE's TSV files or of the
hub's parquet files. The metric of CoLA is Matthews correlation, of STS-B Pearson
correlation, of the rest accuracy (MRPC too: not F1). SST-2 holds out whole sentences
for tuning: see Phrases."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import (
    DataError,
    Rows,
    Settings,
    Source,
    draw_held_out_rows,
    fixed_subset,
    quoted,
    require_columns,
    unquoted,
)
from tasks.fetch import data_folder, pinned_content
from tasks.files import read_parquet, split_files
from tasks.tables import TSV, parse_label, read_csv
from tasks.text import TextTask, locate_rows

PROTOCOL = 1
#: See tasks/__init__.py. Since version 2, SST-2 holds out whole sentences with their
#: phrases.
HELD_OUT = {"sst2": 2}


@dataclass(frozen=True)
class GlueFiles:
    """The files of one task.

    Attributes:
        folder: its name in GLUE's archive.
        columns, label: the columns of the texts and of the label in the TSV files.
        classes: the names of the classes; None for a regression.
        rows: how many rows the published train and dev sets have.
        hub_columns: the columns of the texts in the hub's parquet files, where they have
            other names.
        header: all columns of TSV files that do not name them.
        dev: the name of the dev file, without its ending."""

    folder: str
    columns: tuple[str, ...]
    classes: list[str] | None
    rows: tuple[int, int]
    metric: str = "accuracy"
    label: str = "label"
    hub_columns: tuple[str, ...] | None = None
    header: tuple[str, ...] | None = None
    dev: str = "dev"


# Values that several tasks share
BINARY = ["0", "1"]
ENTAILMENT = ["entailment", "not_entailment"]
SENTENCES = ("sentence1", "sentence2")
SPECS = {
    "sst2": GlueFiles("SST-2", ("sentence",), BINARY, (67349, 872)),
    "mrpc": GlueFiles(
        "MRPC",
        ("#1 String", "#2 String"),
        BINARY,
        (3668, 408),
        label="Quality",
        hub_columns=SENTENCES,
    ),
    "cola": GlueFiles(
        "CoLA",
        ("sentence",),
        BINARY,
        (8551, 1043),
        metric="matthews",
        header=("source", "label", "mark", "sentence"),
    ),
    "qnli": GlueFiles("QNLI", ("question", "sentence"), ENTAILMENT, (104743, 5463)),
    "rte": GlueFiles("RTE", SENTENCES, ENTAILMENT, (2490, 277)),
    "stsb": GlueFiles(
        "STS-B", SENTENCES, None, (5749, 1500), metric="pearson", label="score"
    ),
    "mnli": GlueFiles(
        "MNLI",
        SENTENCES,
        ["entailment", "neutral", "contradiction"],
        (392702, 9815),
        label="gold_label",
        hub_columns=("premise", "hypothesis"),
        dev="dev_matched",
    ),
}


def source(settings: Settings) -> Source:
    """See tasks.source."""
    if settings.get("data_dir"):
        return Source(files=_local_files(settings["name"], Path(settings["data_dir"])))
    return Source(
        pinned=pinned_content(settings["hub"], settings.get("revision"), "dataset")
    )


def load(settings: Settings) -> TextTask:
    """See tasks.load. Raises DataError with file and line for wrong columns or a label
    out of range."""
    name = settings["name"]
    spec = _spec(name)
    folder = data_folder(settings, [f"{name}/*.parquet"], "/where/glue")
    rows_in_files = {
        split: _read(path, spec) for split, path in _local_files(name, folder).items()
    }
    splits = {}
    for split, rows in rows_in_files.items():
        indices = fixed_subset(len(rows), settings.get(f"{split}_rows"), name)
        splits[split] = rows.take(indices)
    if name == "sst2":
        task: TextTask = Phrases(
            settings, spec.classes, spec.metric, splits, rows_in_files["train"]
        )
    else:
        task = TextTask(settings, spec.classes, spec.metric, splits)
    # Both are in the order train, dev
    for (split, rows), published in zip(rows_in_files.items(), spec.rows, strict=True):
        count = len(splits[split])
        if count != published:
            origin = "a fixed subset of" if count < len(rows) else "the files hold"
            task.notes.append(
                f"{name} {split}: {count} rows ({origin} {len(rows)}); "
                f"GLUE has {published}"
            )
    return task


def column_settings(name: str, row: Collection[str]) -> dict[str, str | None]:
    """The settings of tasks/text.py that name the columns of a task's rows. row: one of
    them, whose columns show whether it has GLUE's own names or the hub's."""
    spec = _spec(name)
    texts = spec.hub_columns or spec.columns
    label = "label"
    if set(spec.columns) <= set(row):
        texts = spec.columns
        label = spec.label
    return {
        "text": texts[0],
        "text_pair": texts[1] if len(texts) > 1 else None,
        "label_column": label,
    }


class Phrases(TextTask):
    """SST-2: train rows are phrases of 6,920 sentences, dev rows sentences."""

    def __init__(
        self,
        settings: Settings,
        classes: list[str] | None,
        metric: str,
        splits: Mapping[str, Rows],
        all_train: Rows,
    ) -> None:
        """all_train: all train rows of the file, of which splits["train"] may be a subset."""
        super().__init__(settings, classes, metric, splits)
        self.all_train = all_train

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. The new dev rows are sentences of the whole file: as many
        as `share` of the training rows, but at most that share of all sentences. (Few rows
        of a subset would be sentences, as most training rows are shorter phrases.) A
        training row is left out if all sentences that contain it are held out: a model
        would know a held-out sentence by it."""
        train = self.splits["train"]
        texts = [_plain_spaces(text) for text in self.all_train.texts]
        sentences_by_text = containing_sentences(self.all_train.texts)
        # A sentence is a text that contains itself (see `containing_sentences`)
        sentence_rows = [
            row for row, text in enumerate(texts) if text in sentences_by_text[text]
        ]
        labels = [self.all_train.labels[row] for row in sentence_rows]
        sentence_share = min(share, share * len(train) / len(sentence_rows))
        indices = draw_held_out_rows(labels, sentence_share, self.name)
        dev = self.all_train.take([sentence_rows[i] for i in indices])
        dev_sentences = {_plain_spaces(text) for text in dev.texts}
        train_rows = [
            row
            for row, text in enumerate(train.texts)
            if not sentences_by_text[_plain_spaces(text)] <= dev_sentences
        ]
        self.splits = {"train": train.take(train_rows), "dev": dev}
        left_out = len(train) - len(train_rows)
        self.notes.append(
            f"dev: {len(dev)} sentences held out (task.holdout={share:g}), "
            f"{left_out} of {len(train)} training rows are left out with them, "
            "the dev set is not used"
        )


def containing_sentences(texts: Sequence[str]) -> dict[str, set[str]]:
    """For each text the sentences that contain it as a run of whole words. A sentence
    is a text that no other text contains; it contains itself. Both are written with
    plain spaces (`_plain_spaces`)."""
    containing: dict[str, set[str]] = {_plain_spaces(text): set() for text in texts}
    longest_first = sorted(containing, key=lambda text: (-len(text.split()), text))
    for text in longest_first:
        if containing[text]:  # a longer text contains it
            continue
        for phrase in _phrases(text.split()):
            if phrase in containing:
                containing[phrase].add(text)
    return containing


def _phrases(words: list[str]) -> Iterator[str]:
    """All runs of successive words, as texts."""
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            yield " ".join(words[start:end])


def _plain_spaces(text: str) -> str:
    """The text with one space between words and none around it: each text of SST-2's file
    ends with a space."""
    return " ".join(text.split())


def _spec(name: str) -> GlueFiles:
    """The files of a task. Raises DataError for a name that is not in SPECS."""
    if name not in SPECS:
        raise DataError(f"GLUE has no task {name!r} here. Known: {', '.join(SPECS)}")
    return SPECS[name]


def _local_files(name: str, data_dir: Path) -> dict[str, Path]:
    """The train and dev file. data_dir: the task's own folder, or the one that holds
    all tasks."""
    spec = _spec(name)
    # A split's file is GLUE's TSV, the hub's parquet file, or one by GLUE's name in the
    # hub's format
    hub_dev = spec.dev.replace("dev", "validation")
    patterns = {
        "train": ("train.tsv", "train*.parquet"),
        "dev": (f"{spec.dev}.tsv", f"{hub_dev}*.parquet", f"{spec.dev}.parquet"),
    }
    return split_files(patterns, data_dir, data_dir / spec.folder, data_dir / name)


def _read(path: Path, spec: GlueFiles) -> Rows:
    """All rows of a file."""
    is_parquet = path.suffix == ".parquet"
    if is_parquet:
        rows = read_parquet(path)
        columns = spec.hub_columns or spec.columns
        label_column = "label"
    else:
        rows = read_csv(path, TSV, spec.header)
        columns = spec.columns
        label_column = spec.label
    texts: list[list[str]] = [[] for _ in columns]
    labels: list[float] = []
    for line, row in rows:
        require_columns(path, row, (*columns, label_column))
        for column, column_texts in zip(columns, texts, strict=True):
            column_texts.append(row[column])
        value = row[label_column]
        # The hub's files give a class by its index, GLUE's by its name
        if is_parquet and spec.classes is not None:
            labels.append(_class_index(value, spec.classes, path, line))
        else:
            labels.append(_label(value, spec.classes, path, line))
    if not labels:
        raise DataError(f"{path}: no rows")
    pairs = texts[1] if len(texts) > 1 else None
    return Rows(texts[0], pairs, labels, about=locate_rows(path, len(labels)))


def _class_index(value: Any, classes: list[str], path: Path, line: int) -> int:
    """The index of a class, which is how the hub's files give a label. Raises DataError
    for any other value, such as -1, which marks the hidden labels of a test set."""
    if value not in range(len(classes)):
        raise DataError(
            f"{path} row {line}: label {quoted(value)} is none of {len(classes)}"
        )
    return int(value)


def _label(
    value: object, classes: list[str] | None, path: Path, line: int
) -> int | float:
    """See parse_label. classes: None for STS-B, whose score must be from 0 to 5: any other
    number is a DataError, too."""
    number = parse_label(value, classes, path, line)
    if classes is None and not 0 <= number <= 5:
        raise DataError(
            f"{path} line {line}: score {unquoted(value)} is not between 0 and 5"
        )
    return number
