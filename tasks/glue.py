"""GLUE (Wang et al. 2019): sst2, mrpc, cola, qnli, rte, stsb, and mnli as a start for one of LoRA's rows.

From the hub at a pinned revision, or from a local folder of GLUE's TSV files or of the hub's parquet files.
CoLA is judged by Matthews correlation, STS-B by Pearson's, the rest by accuracy (MRPC too: not F1). SST-2's
training rows are phrases of 6,920 sentences, its dev rows are sentences: tuning holds out sentences
(Phrases)."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import DataError, Rows, Source, block, held_out, listed, named, quoted, subset
from tasks.fetch.hub import content, data_folder
from tasks.text import TSV, Row, TextTask, open_text, parse_label, read_parquet

PROTOCOL = 1
#: Since 2 whole sentences are held out, with their phrases.
HELD_OUT = {"sst2": 2}


@dataclass(frozen=True)
class Spec:
    """How one task lies on disk. Names of columns in the TSV files; a CoLA file has no header, so numbers
    there."""

    folder: str
    text: str | int
    pair: str | None
    label: str | int
    hub_columns: tuple[str, ...]
    classes: list[str] | None
    rows: tuple[int, int]
    metric: str = "accuracy"
    dev: str = "dev"
    hub_dev: str = "validation"


BINARY, ENTAILS = ["0", "1"], ["entailment", "not_entailment"]
SENTENCES = ("sentence1", "sentence2")
SPECS = {
    "sst2": Spec("SST-2", "sentence", None, "label", ("sentence",), BINARY, (67349, 872)),
    "mrpc": Spec("MRPC", "#1 String", "#2 String", "Quality", SENTENCES, BINARY, (3668, 408)),
    "cola": Spec("CoLA", 3, None, 1, ("sentence",), BINARY, (8551, 1043), "matthews"),
    "qnli": Spec("QNLI", "question", "sentence", "label", ("question", "sentence"), ENTAILS, (104743, 5463)),
    "rte": Spec("RTE", *SENTENCES, "label", SENTENCES, ENTAILS, (2490, 277)),
    "stsb": Spec("STS-B", *SENTENCES, "score", SENTENCES, None, (5749, 1500), "pearson"),
    "mnli": Spec(
        "MNLI",
        *SENTENCES,
        "gold_label",
        ("premise", "hypothesis"),
        ["entailment", "neutral", "contradiction"],
        (392702, 9815),
        dev="dev_matched",
        hub_dev="validation_matched",
    ),
}


def source(settings: Any) -> Source:
    """See tasks.source."""
    if settings.get("data_dir"):
        return Source(files=_local_files(settings["name"], Path(settings["data_dir"])))
    return Source(pinned=content(settings["hub"], settings.get("revision"), "dataset"))


def load(settings: Any) -> TextTask:
    """See tasks.load. Raises DataError with file and line for a wrong number of columns or a label out of
    range."""
    name, spec = settings["name"], _spec(settings["name"])
    files = _local_files(name, data_folder(settings, f"{name}/*.parquet", "/where/glue"))
    train, dev = (_read(files[split], spec) for split in ("train", "dev"))
    parts = [
        subset(rows, settings.get(f"{split}_rows"), name) for split, rows in (("train", train), ("dev", dev))
    ]
    task = TextTask(name, spec.classes, spec.metric, *parts)
    if name == "sst2":
        task = Phrases(name, spec.classes, spec.metric, *parts, whole=train)
    task.block = block(settings)
    for split, rows, full in zip(("train", "dev"), (train, dev), spec.rows, strict=True):
        used = len(task.splits[split])
        if used != full:
            whole = "a fixed subset of" if used < len(rows) else "the files hold"
            task.notes.append(f"{name} {split}: {used} rows ({whole} {len(rows)}); GLUE has {full}")
    return task


class Phrases(TextTask):
    """SST-2. Of its training rows only whole sentences resemble the dev rows. whole: all training rows of the
    file."""

    def __init__(
        self, name: str, classes: list[str] | None, metric: str, train: Rows, dev: Rows, *, whole: Rows
    ) -> None:
        super().__init__(name, classes, metric, train, dev)
        self.whole = whole

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. Sentences of the whole file become the dev rows: as many as `share` of the
        training rows, but at most that share of all sentences. A phrase that is in no other sentence is
        trained on no more: a model would know a held-out sentence by it."""
        train = self.splits["train"]
        within = sentences(self.whole.texts)
        rows = [row for row, text in enumerate(self.whole.texts) if _words(text) in within[_words(text)]]
        part = min(share, share * len(train) / len(rows))
        dev = self.whole.take(
            [rows[i] for i in held_out([self.whole.labels[row] for row in rows], part, self.name)]
        )
        held = set(map(_words, dev.texts))
        rest = [row for row, text in enumerate(train.texts) if not within[_words(text)] <= held]
        self.splits = {"train": train.take(rest), "dev": dev}
        left = f"{len(train) - len(rest)} of {len(train)} training rows are left out with them"
        self.notes.append(
            f"dev: {len(dev)} sentences held out (task.holdout={share:g}), {left}, the dev set is not used"
        )


def sentences(texts: Sequence[str]) -> dict[str, set[str]]:
    """Of each text, by its words, the sentences that it is a run of whole words of. A sentence is a text that
    is in no other one; it is in itself."""
    found: dict[str, set[str]] = {_words(text): set() for text in texts}
    for text in sorted(found, key=lambda text: (-len(text.split()), text)):
        if not found[text]:  # no longer text has it
            words = text.split()
            for first in range(len(words)):
                for end in range(first + 1, len(words) + 1):
                    if (run := " ".join(words[first:end])) in found:
                        found[run].add(text)
    return found


def _words(text: str) -> str:
    """Without the space at the end that SST-2's texts have."""
    return " ".join(text.split())


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise DataError(f"GLUE has no task {name!r} here. Known: {', '.join(SPECS)}")
    return SPECS[name]


def _local_files(name: str, data_dir: Path) -> dict[str, Path]:
    """The training and dev file under data_dir, which is the task's own folder or the one that holds them
    all."""
    spec = _spec(name)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder (task.data_dir)")
    for folder in (data_dir, data_dir / spec.folder, data_dir / name):
        found = {}
        for split, stem in (("train", "train"), ("dev", spec.dev)):
            hub_stem = stem if split == "train" else spec.hub_dev
            candidates = [
                folder / f"{stem}.tsv",
                *sorted(folder.glob(f"{hub_stem}*.parquet")),
                folder / f"{stem}.parquet",
            ]
            found[split] = next((p for p in candidates if p.is_file()), candidates[0])
        present = [path for path in found.values() if path.is_file()]
        if len(present) == 2:
            return found
        # A folder that holds one of the two is the right folder with a file missing.
        if present or folder.name in (spec.folder, name):
            missing = next(path for path in found.values() if not path.is_file())
            if folder.is_dir():
                raise DataError(
                    f"{missing}: no such file ({name} needs {missing.stem}.tsv or the hub's parquet files)"
                )
    raise DataError(
        f"{data_dir}: holds neither train.tsv nor a folder {spec.folder} (task.data_dir for {name})"
    )


def _read(path: Path, spec: Spec) -> Rows:
    parquet = path.suffix == ".parquet"
    columns = list(spec.hub_columns) if parquet else [c for c in (spec.text, spec.pair) if c is not None]
    label = "label" if parquet else spec.label
    texts: list[list[str]] = [[] for _ in columns]
    labels = []
    for line, row in read_parquet(path) if parquet else _read_tsv(path, spec):
        for column in (*columns, label):
            if column not in row:
                raise DataError(f"{path}: no column {column!r}. It has: {listed(row)}")
        for values, column in zip(texts, columns, strict=True):
            values.append(row[column])  # type: ignore[index]
        labels.append(_label(row[label], spec, path, line, parquet))  # type: ignore[index]
    if not labels:
        raise DataError(f"{path}: no rows")
    return Rows(texts[0], texts[1] if len(texts) > 1 else None, labels)


def _label(value: Any, spec: Spec, path: Path, line: int, parquet: bool) -> int | float:
    # Class indices, in the order of spec.classes; -1 marks the hidden test labels
    if parquet and spec.classes is not None:
        if value not in range(len(spec.classes)):
            raise DataError(
                f"{path} row {line}: label {quoted(value)} is not one of 0 to {len(spec.classes) - 1}"
            )
        return int(value)
    number = parse_label(value, spec.classes, path, line)
    if spec.classes is None and not 0 <= number <= 5:
        raise DataError(f"{path} line {line}: score {named(value)} is not between 0 and 5")
    return number


def _read_tsv(path: Path, spec: Spec) -> Iterator[Row]:
    headless = isinstance(spec.text, int)
    with open_text(path) as file:
        reader = csv.reader(file, **TSV)
        header: list[Any] = list(range(4)) if headless else next(reader, [])
        for fields in reader:
            if len(fields) != len(header):
                raise DataError(
                    f"{path} line {reader.line_num}: {len(fields)} columns, {len(header)} expected. Is it cut"
                    " off?"
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
