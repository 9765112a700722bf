"""GLUE (Wang et al. 2019): sst2, mrpc, cola, qnli, rte, stsb, and mnli as a start for
one of LoRA's rows.

From the hub at a pinned revision, or from a local folder of GLUE's TSV files or of the
hub's parquet files. The metric of CoLA is Matthews correlation, of STS-B Pearson
correlation, of the rest accuracy (MRPC too: not F1). SST-2 holds out whole sentences
for tuning: see Phrases."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import (
    DataError,
    Rows,
    Source,
    fixed_subset,
    held_out,
    named,
    quoted,
    require_columns,
)
from tasks.fetch import content, data_folder
from tasks.files import read_parquet, split_files
from tasks.text import TSV, TextTask, numbered, parse_label, read_csv

PROTOCOL = 1
#: Since 2 whole sentences are held out, with their phrases.
HELD_OUT = {"sst2": 2}


@dataclass(frozen=True)
class Spec:
    """The files of one task. columns, label: names in the TSV files; header: their
    columns where the files name none; hub_columns: the texts' names in the hub's
    parquet files, where they differ. classes: None for a regression. rows: of the
    published train and dev set. dev: the name of the dev file."""

    folder: str
    columns: tuple[str, ...]
    classes: list[str] | None
    rows: tuple[int, int]
    metric: str = "accuracy"
    label: str = "label"
    hub_columns: tuple[str, ...] | None = None
    header: tuple[str, ...] | None = None
    dev: str = "dev"


BINARY, ENTAILS = ["0", "1"], ["entailment", "not_entailment"]
NLI = ["entailment", "neutral", "contradiction"]
ONE, TWO, NLI_TEXTS = (
    ("sentence",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
)
COLA = ("source", "label", "mark", "sentence")
SPECS = {
    "sst2": Spec("SST-2", ONE, BINARY, (67349, 872)),
    "mrpc": Spec(
        "MRPC",
        ("#1 String", "#2 String"),
        BINARY,
        (3668, 408),
        label="Quality",
        hub_columns=TWO,
    ),
    "cola": Spec("CoLA", ONE, BINARY, (8551, 1043), "matthews", header=COLA),
    "qnli": Spec("QNLI", ("question", "sentence"), ENTAILS, (104743, 5463)),
    "rte": Spec("RTE", TWO, ENTAILS, (2490, 277)),
    "stsb": Spec("STS-B", TWO, None, (5749, 1500), "pearson", label="score"),
    "mnli": Spec(
        "MNLI",
        TWO,
        NLI,
        (392702, 9815),
        "accuracy",
        "gold_label",
        NLI_TEXTS,
        dev="dev_matched",
    ),
}


def source(settings: Any) -> Source:
    """See tasks.source."""
    if settings.get("data_dir"):
        return Source(files=_local_files(settings["name"], Path(settings["data_dir"])))
    return Source(pinned=content(settings["hub"], settings.get("revision"), "dataset"))


def load(settings: Any) -> TextTask:
    """See tasks.load. Raises DataError with file and line for wrong columns or a label
    out of range."""
    name, spec = settings["name"], _spec(settings["name"])
    files = _local_files(
        name, data_folder(settings, [f"{name}/*.parquet"], "/where/glue")
    )
    whole = {split: _read(path, spec) for split, path in files.items()}
    taken = {
        split: fixed_subset(len(of), settings.get(f"{split}_rows"), name)
        for split, of in whole.items()
    }
    parts = {split: rows.take(taken[split]) for split, rows in whole.items()}
    task = (Phrases if name == "sst2" else TextTask)(
        settings, spec.classes, spec.metric, parts
    )
    if isinstance(task, Phrases):
        task.whole = whole["train"]
    for (split, rows), published in zip(whole.items(), spec.rows, strict=True):
        if (used := len(parts[split])) != published:
            of = "a fixed subset of" if used < len(rows) else "the files hold"
            task.notes.append(
                f"{name} {split}: {used} rows ({of} {len(rows)}); GLUE has {published}"
            )
    return task


def columns(name: str, row: Collection[str]) -> dict[str, str | None]:
    """The settings of tasks/text.py that name the columns of rows like this one: GLUE's
    own, or the hub's."""
    spec = _spec(name)
    own = set(spec.columns) <= set(row)
    first, *second = spec.columns if own else spec.hub_columns or spec.columns
    label = spec.label if own else "label"
    return {
        "text": first,
        "text_pair": second[0] if second else None,
        "label_column": label,
    }


class Phrases(TextTask):
    """SST-2: train rows are phrases of 6,920 sentences, dev rows sentences. whole: the
    file's train rows."""

    whole: Rows

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. The new dev rows are sentences of the whole file: as many
        as `share` of the training rows, but at most that share of all sentences.
        Training rows that occur in no other sentence are left out: a model would know a
        held-out sentence by them."""
        train, texts = self.splits["train"], self.whole.texts
        within = sentences(texts)
        rows = [
            row
            for row, text in enumerate(texts)
            if _words(text) in within[_words(text)]
        ]
        part = min(share, share * len(train) / len(rows))
        held = held_out([self.whole.labels[row] for row in rows], part, self.name)
        dev = self.whole.take([rows[i] for i in held])
        dev_sentences = set(map(_words, dev.texts))
        rest = [
            row
            for row, text in enumerate(train.texts)
            if not within[_words(text)] <= dev_sentences
        ]
        self.splits = {"train": train.take(rest), "dev": dev}
        left = f"{len(train) - len(rest)} of {len(train)} training rows are left out with them"
        held_out_note = f"dev: {len(dev)} sentences held out (task.holdout={share:g})"
        self.notes.append(f"{held_out_note}, {left}, the dev set is not used")


def sentences(texts: Sequence[str]) -> dict[str, set[str]]:
    """For each text the sentences that contain it as a run of whole words. A sentence
    is a text that no other text contains; it contains itself."""
    containing: dict[str, set[str]] = {_words(text): set() for text in texts}
    for text in sorted(containing, key=lambda text: (-len(text.split()), text)):
        if not containing[text]:  # no longer text contains it
            words = text.split()
            for first in range(len(words)):
                for end in range(first + 1, len(words) + 1):
                    if (run := " ".join(words[first:end])) in containing:
                        containing[run].add(text)
    return containing


def _words(text: str) -> str:
    """The text without the space that SST-2's file has at its end."""
    return " ".join(text.split())


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise DataError(f"GLUE has no task {name!r} here. Known: {', '.join(SPECS)}")
    return SPECS[name]


def _local_files(name: str, data_dir: Path) -> dict[str, Path]:
    """The train and dev file. data_dir: the task's own folder, or the one that holds
    all tasks."""
    spec = _spec(name)
    # A split's file as GLUE has it, as the hub has it, and by GLUE's name in the hub's
    # format
    hub_dev = spec.dev.replace("dev", "validation")
    patterns = {
        "train": ("train.tsv", "train*.parquet"),
        "dev": (f"{spec.dev}.tsv", f"{hub_dev}*.parquet", f"{spec.dev}.parquet"),
    }
    return split_files(patterns, data_dir, data_dir / spec.folder, data_dir / name)


def _read(path: Path, spec: Spec) -> Rows:
    parquet = path.suffix == ".parquet"
    columns, label = (
        (spec.hub_columns or spec.columns, "label")
        if parquet
        else (spec.columns, spec.label)
    )
    texts, labels = [], []
    for line, row in (
        read_parquet(path) if parquet else read_csv(path, TSV, spec.header)
    ):
        require_columns(path, row, (*columns, label))
        texts.append([row[column] for column in columns])
        labels.append(_label(row[label], spec, path, line, parquet))
    if not labels:
        raise DataError(f"{path}: no rows")
    first, *second = map(list, zip(*texts, strict=True))
    return Rows(
        first, second[0] if second else None, labels, numbered(path, len(labels))
    )


def _label(value: Any, spec: Spec, path: Path, line: int, parquet: bool) -> int | float:
    # The hub's class labels are indices in the order of spec.classes; -1 marks hidden
    # test labels
    if parquet and spec.classes is not None:
        if value not in range(len(spec.classes)):
            raise DataError(
                f"{path} row {line}: label {quoted(value)} is none of {len(spec.classes)}"
            )
        return int(value)
    number = parse_label(value, spec.classes, path, line)
    if spec.classes is None and not 0 <= number <= 5:
        raise DataError(
            f"{path} line {line}: score {named(value)} is not between 0 and 5"
        )
    return number
