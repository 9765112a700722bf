"""E2E NLG (Novikova et al. 2017): a restaurant's attributes in, a sentence out. Tables
3 and 10.

The protocol is that of Hu et al. 2022 (appendix D.3; microsoft/LoRA, examples/NLG):
- the meaning representation (MR) is written `name : Blue Spice | Type : pub`, references are tokenised;
- a row is BPE(MR), separator, BPE(" " + reference), end. Both are <|endoftext|>, or the model's end of text;
- the loss is the mean over the tokens of the reference and its end, with label smoothing over the whole
  vocabulary. The dev loss is not smoothed;
- a test MR is decoded once (tasks/beam.py) and scored against all its references (tasks/e2e_metrics.py).

Rows come from the hub, from the challenge's CSV files, or from files in
microsoft/LoRA's format."""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.base import DataError, Source, check, fixed_subset, held_out, quoted
from tasks.continuations import Row, Written
from tasks.e2e_files import OTHERWISE, Pair, local_files, read_pairs
from tasks.e2e_metrics import NO_JAVA, scores
from tasks.fetch import content, data_folder

PROTOCOL = 1

#: Rows that the challenge published.
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


class E2ETask(Written):
    """See the module. items: an MR and its references."""

    def __init__(
        self,
        settings: Any,
        splits: Mapping[str, list[Pair]],
        items: list[tuple[str, list[str]]],
    ) -> None:
        penalties = settings["length_penalty"]
        check(
            settings,
            "length_penalty",
            len({*penalties}) == len(penalties),
            "different numbers",
        )
        super().__init__(
            settings, splits, items, [f"{penalty:g}" for penalty in penalties]
        )
        self.label_smoothing = settings["label_smoothing"]

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. By MR, since one MR has many references: no MR is in both
        parts."""
        pairs = self.splits["train"]
        mrs = list(dict.fromkeys(mr for mr, _ in pairs))
        held = {mrs[i] for i in held_out([0] * len(mrs), share, self.name)}
        train, dev = (
            [pair for pair in pairs if (pair[0] in held) is is_dev]
            for is_dev in (False, True)
        )
        self.splits = {"train": train, "dev": dev}
        rows = (
            f"{len(dev)} of {len(pairs)} training rows ({len(held)} of {len(mrs)} MRs)"
        )
        self.notes.append(
            f"dev: {rows} held out (task.holdout={share:g}), the dev set is not used"
        )

    def prepare(
        self, tokenizer: Any, max_length: int, positions: int | None = None
    ) -> None:
        # GPT-2's separator where the vocabulary has it: an instruction model's end
        # token ends a turn
        self._end = (
            SEPARATOR if SEPARATOR in tokenizer.get_vocab() else tokenizer.eos_token
        )
        if self._end is None:
            raise DataError(
                f"{self.name}: the model's tokenizer has no end-of-text token"
            )
        end = tokenizer.convert_tokens_to_ids(self._end)
        self.prepare_text(tokenizer, positions)

        def ids(texts: list[str]) -> list[list[int]]:
            return (
                tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            )

        for split, pairs in self.splits.items():
            prompts, references = (
                ids([mr for mr, _ in pairs]),
                ids([f" {text}" for _, text in pairs]),
            )
            self._rows[split] = []
            for prompt, reference, (mr, _) in zip(
                prompts, references, pairs, strict=True
            ):
                if len(prompt) + 2 > max_length:
                    raise DataError(
                        f"train.max_length={max_length} leaves no reference to {quoted(mr)}"
                    )
                self._rows[split].append(
                    Row([*prompt, end, *reference, end][:max_length], len(prompt))
                )
        self._prompts = [[*prompt, end] for prompt in ids([mr for mr, _ in self.items])]
        self.check_positions()
        blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        self.ends = (end, *blank) if len(blank) == 1 else (end,)

    def text(self, ids: list[int]) -> str:
        """The text before the first end token and the first blank line."""
        text = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text).split(self._end)[0].split("\n\n")[0].strip()

    def scores(self, texts: Sequence[str]) -> dict[str, Any]:
        return scores([references for _, references in self.items], texts)

    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """references.txt (a block for each MR) and NAME.txt (a line), as
        tuetschek/e2e-metrics reads them."""
        blocks = [
            "".join(f"{line}\n" for line in [*references, ""])
            for _, references in self.items
        ]
        (folder / "references.txt").write_text("".join(blocks), encoding="utf-8")
        for name, lines in texts.items():
            content = "".join(f"{' '.join(line.split())}\n" for line in lines)
            (folder / f"{name}.txt").write_text(content, encoding="utf-8")


# --- rows


def source(settings: Any) -> Source:
    """See tasks.source."""
    if settings.get("data_dir"):
        return Source(files=local_files(Path(settings["data_dir"]), settings["decode"]))
    return Source(pinned=content(settings["hub"], settings.get("revision"), "dataset"))


def load(settings: Any) -> E2ETask:
    """See tasks.load. Raises DataError, with file and line, for a missing column or
    another wrong row."""
    folder = data_folder(settings, ["*.parquet"], "/where/e2e")
    files, split, name = (
        local_files(folder, settings["decode"]),
        settings["decode"],
        settings["name"],
    )
    rows = {split: list(read_pairs(path)) for split, path in files.items()}
    splits, notes = {}, []
    for part in ("train", "dev"):
        every = rows[part]
        splits[part] = [
            every[i]
            for i in fixed_subset(len(every), settings.get(f"{part}_rows"), name)
        ]
        if (used := len(splits[part])) != ROWS[part]:
            of = "a fixed subset of" if used < len(every) else "the files hold"
            notes.append(
                f"{name} {part}: {used} rows ({of} {len(every)}); E2E has {ROWS[part]}"
            )
    groups: dict[str, list[str]] = {}
    for mr, reference in rows.get(split, []):
        groups.setdefault(mr, []).append(reference)
    mrs = list(groups.items())
    task = E2ETask(
        settings,
        splits,
        [mrs[i] for i in fixed_subset(len(mrs), settings.get("items"), name)],
    )
    if split == "none":
        notes.append("no texts are decoded")
    elif len(task.items) < len(mrs) or len(rows[split]) != ROWS[split]:
        notes.append(
            f"{len(task.items)} MRs are decoded, of {len(mrs)} in the {split} set"
        )
    if any(path.suffix != ".txt" for path in files.values()):
        notes.append(
            f"references tokenised here with spaCy {version('spacy')}'s English rules, as microsoft/LoRA's"
            " test references are; its dev (and, it seems, train) references are tokenised differently"
            f" ({OTHERWISE}): for table 3 use its txt files"
        )
    task.notes = notes + _deviations(settings)
    if task.decodes and shutil.which("java") is None:
        later = "python -m runs.evaluate ID adds them later"
        task.advice = [f"METEOR, ROUGE-L and CIDEr will be missing: {NO_JAVA}. {later}"]
    return task


def _deviations(settings: Any) -> list[str]:
    """Settings that differ from the published runs, in words."""
    if settings["decode"] == "none":  # the settings of decoding are not used
        kept = {
            "search": "lora",
            "length_penalty": [0.9],
            "label_smoothing": settings["label_smoothing"],
        }
        settings = {**settings, **PUBLISHED, **kept}
    wanted = PUBLISHED.items()
    words = [
        f"task.{k}={settings[k]}; the protocol's is {v}"
        for k, v in wanted
        if settings[k] != v
    ]
    if float(settings["length_penalty"][0]) != 0.9:
        words.append(
            f"length penalty {settings['length_penalty'][0]}; the paper's is 0.9"
        )
    if settings["decode"] == "dev":
        words.append("texts are decoded and scored on the dev set, not on the test set")
    if settings["search"] != "lora":
        words.append("decoded with transformers' own beam search, not microsoft/LoRA's")
    if settings["length_grouped"]:
        words.append("batches of like lengths; the protocol's are random")
    return words
