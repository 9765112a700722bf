"""E2E NLG (Novikova et al. 2017): a restaurant's attributes in, a sentence out. Tables
3 and 10.

The protocol is that of Hu et al. 2022 (appendix D.3; microsoft/LoRA, examples/NLG):

- The meaning representation (MR) is written `name : Blue Spice | Type : pub`, and
  references are tokenised.
- A row is BPE(MR), separator, BPE(" " + reference), end. Both are <|endoftext|>, or the
  model's end of text.
- The loss is the mean over the tokens of the reference and its end, with label
  smoothing over the whole vocabulary. The dev loss is not smoothed.
- A test MR is decoded once (tasks/beam.py) and scored against all its references
  (tasks/e2e_metrics.py).

Rows come from the hub, from the challenge's CSV files, or from files in
microsoft/LoRA's format."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.base import (
    DataError,
    Settings,
    Source,
    check_setting,
    draw_held_out_rows,
    fixed_subset,
    quoted,
)
from tasks.continuations import Row, Written
from tasks.e2e_files import TOKENISED_OTHERWISE, Pair, local_files, read_pairs
from tasks.e2e_metrics import NO_JAVA, Scores, e2e_scores
from tasks.fetch import data_folder, pinned_content

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROTOCOL = 1

#: How many rows the challenge published.
ROWS = {"train": 42061, "dev": 4672, "test": 4693}

#: GPT-2's token between MR and reference, and at the end.
SEPARATOR = "<|endoftext|>"
#: Settings of the published runs.
PUBLISHED = {
    "label_smoothing": 0.1,
    "beams": 10,
    "no_repeat_ngram": 4,
    "max_new_tokens": 64,
}
PUBLISHED_PENALTY = 0.9


class MeaningItem(NamedTuple):
    """A meaning representation (MR) that is decoded, and its references."""

    mr: str
    references: list[str]


class E2ETask(Written):
    """See the module."""

    items: list[MeaningItem]

    def __init__(
        self,
        settings: Settings,
        splits: Mapping[str, list[Pair]],
        items: list[MeaningItem],
    ) -> None:
        penalties = settings["length_penalty"]
        are_different = len(set(penalties)) == len(penalties)
        check_setting(settings, "length_penalty", are_different, "different numbers")
        variants = [f"{penalty:g}" for penalty in penalties]
        super().__init__(settings, splits, items, variants)
        self.label_smoothing = settings["label_smoothing"]

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. Whole MRs are drawn, since one MR has many references: no MR is
        in both splits."""
        pairs = self.splits["train"]
        mrs = list(dict.fromkeys(mr for mr, _ in pairs))  # each once
        # All MRs are one group: they have no classes
        drawn = draw_held_out_rows([0] * len(mrs), share, self.name)
        dev_mrs = {mrs[i] for i in drawn}
        train = [pair for pair in pairs if pair[0] not in dev_mrs]
        dev = [pair for pair in pairs if pair[0] in dev_mrs]
        self.splits = {"train": train, "dev": dev}
        self.notes.append(
            f"dev: {len(dev)} of {len(pairs)} training rows ({len(dev_mrs)} of "
            f"{len(mrs)} MRs) held out (task.holdout={share:g}), the dev set is not used"
        )

    def prepare(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        positions: int | None = None,
    ) -> None:
        """See Task.prepare. Raises DataError for a tokenizer without an end-of-text token,
        and for an MR that is too long."""
        # GPT-2's separator where the vocabulary has it, since the end token of an
        # instruction model only ends a turn
        self._end = tokenizer.eos_token
        if SEPARATOR in tokenizer.get_vocab():
            self._end = SEPARATOR
        if self._end is None:
            raise DataError(
                f"{self.name}: the model's tokenizer has no end-of-text token"
            )
        end = tokenizer.convert_tokens_to_ids(self._end)
        self.take_tokenizer(tokenizer, positions)
        for split, pairs in self.splits.items():
            self._rows[split] = self._tokenised_rows(pairs, end, max_length)
        prompts = self._ids([item.mr for item in self.items])
        self._prompts = [[*prompt, end] for prompt in prompts]
        self.check_positions()
        # A text also ends at a blank line, where that is a single token (see `text`)
        blank_line = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        self.ends = (end,)
        if len(blank_line) == 1:
            self.ends = (end, *blank_line)

    def _tokenised_rows(
        self, pairs: Sequence[Pair], end: int, max_length: int
    ) -> list[Row]:
        """The rows of pairs, each cut after max_length tokens. end: the token between MR and
        reference, and at the end. Raises DataError for an MR that leaves no room for a
        reference."""
        prompts = self._ids([mr for mr, _ in pairs])
        references = self._ids([f" {reference}" for _, reference in pairs])
        rows = []
        for prompt, reference, (mr, _) in zip(prompts, references, pairs, strict=True):
            # The MR's end and a first token of the reference have to fit, too
            if len(prompt) + 2 > max_length:
                raise DataError(
                    f"train.max_length={max_length} leaves no reference to {quoted(mr)}"
                )
            ids = [*prompt, end, *reference, end]
            # The last token that is given is the one after the MR, at this index
            rows.append(Row(ids[:max_length], last_given=len(prompt)))
        return rows

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """The token ids of texts, without special tokens."""
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)[
            "input_ids"
        ]
        return rows

    def text(self, ids: list[int]) -> str:
        """The text before the first end token and the first blank line."""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text.split(self._end)[0].split("\n\n")[0].strip()

    def scores(self, texts: Sequence[str]) -> Scores:
        return e2e_scores([item.references for item in self.items], texts)

    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """Writes references.txt (a block of lines for each MR) and, for each named list of
        texts, NAME.txt (a line for each MR), as tuetschek/e2e-metrics reads them."""
        blocks = [_lines([*item.references, ""]) for item in self.items]
        (folder / "references.txt").write_text("".join(blocks), encoding="utf-8")
        for name, texts_of_items in texts.items():
            lines = [" ".join(text.split()) for text in texts_of_items]
            (folder / f"{name}.txt").write_text(_lines(lines), encoding="utf-8")


def _lines(lines: Iterable[str]) -> str:
    """The text of a file with these lines."""
    return "".join(f"{line}\n" for line in lines)


# --- rows


def source(settings: Settings) -> Source:
    """See tasks.source."""
    if settings.get("data_dir"):
        return Source(files=local_files(Path(settings["data_dir"]), settings["decode"]))
    return Source(
        pinned=pinned_content(settings["hub"], settings.get("revision"), "dataset")
    )


def load(settings: Settings) -> E2ETask:
    """See tasks.load. Raises DataError, with file and line, for a missing column or
    another wrong row."""
    decode = settings["decode"]  # the split whose MRs are decoded, or "none"
    folder = data_folder(settings, ["*.parquet"], "/where/e2e")
    files = local_files(folder, decode)
    pairs = {split: list(read_pairs(path)) for split, path in files.items()}
    splits, notes = _splits(settings, pairs)
    items = _items(pairs.get(decode, []))
    indices = fixed_subset(len(items), settings.get("items"), settings["name"])
    task = E2ETask(settings, splits, [items[i] for i in indices])
    if decode == "none":
        notes.append("no texts are decoded")
    elif len(task.items) < len(items) or len(pairs[decode]) != ROWS[decode]:
        notes.append(
            f"{len(task.items)} MRs are decoded, of {len(items)} in the {decode} set"
        )
    if any(path.suffix != ".txt" for path in files.values()):
        notes.append(
            f"references tokenised here with spaCy {version('spacy')}'s English rules, "
            "as microsoft/LoRA's test references are; its dev (and, it seems, train) "
            f"references are tokenised differently ({TOKENISED_OTHERWISE}): for table 3 use its "
            "txt files"
        )
    task.notes = notes + _deviations(settings)
    if task.decodes and shutil.which("java") is None:
        task.advice = [
            f"METEOR, ROUGE-L and CIDEr will be missing: {NO_JAVA}. "
            "vera-bench evaluate ID adds them later"
        ]
    return task


def _splits(
    settings: Settings, pairs: Mapping[str, list[Pair]]
) -> tuple[dict[str, list[Pair]], list[str]]:
    """The pairs of train and dev (a fixed subset where task.train_rows or task.dev_rows
    gives a size), and notes about sizes that are not the published ones. pairs: those in
    the file of each split."""
    splits = {}
    notes = []
    name = settings["name"]
    for split in ("train", "dev"):
        rows = pairs[split]
        indices = fixed_subset(len(rows), settings.get(f"{split}_rows"), name)
        splits[split] = [rows[i] for i in indices]
        count = len(indices)
        if count != ROWS[split]:
            origin = "a fixed subset of" if count < len(rows) else "the files hold"
            notes.append(
                f"{name} {split}: {count} rows ({origin} {len(rows)}); "
                f"E2E has {ROWS[split]}"
            )
    return splits, notes


def _items(pairs: Sequence[Pair]) -> list[MeaningItem]:
    """The MRs of a split, each with all its references."""
    items: dict[str, MeaningItem] = {}
    for mr, reference in pairs:
        items.setdefault(mr, MeaningItem(mr, [])).references.append(reference)
    return list(items.values())


def _deviations(settings: Settings) -> list[str]:
    """Notes about settings that differ from those of the published runs."""
    decodes = settings["decode"] != "none"
    notes = []
    for key, value in PUBLISHED.items():
        is_used = decodes or key == "label_smoothing"  # the others are of decoding
        if is_used and settings[key] != value:
            notes.append(f"task.{key}={settings[key]}; the protocol's is {value}")
    if decodes:
        notes += _deviations_of_decoding(settings)
    if settings["length_grouped"]:
        notes.append("batches of like lengths; the protocol's are random")
    return notes


def _deviations_of_decoding(settings: Settings) -> list[str]:
    """Deviations in settings that matter only where texts are decoded."""
    notes = []
    penalty = settings["length_penalty"][0]
    if float(penalty) != PUBLISHED_PENALTY:
        notes.append(f"length penalty {penalty}; the paper's is {PUBLISHED_PENALTY}")
    if settings["decode"] == "dev":
        notes.append("texts are decoded and scored on the dev set, not on the test set")
    if settings["search"] != "lora":
        notes.append("decoded with transformers' own beam search, not microsoft/LoRA's")
    return notes
