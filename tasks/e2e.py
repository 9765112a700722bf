"""E2E NLG (Novikova et al. 2017): a restaurant's attributes in, a sentence out. Tables 3 and 10.

The protocol is that of Hu et al. 2022 (appendix D.3; microsoft/LoRA, examples/NLG):
- the meaning representation (MR) is written `name : Blue Spice | Type : pub`, references are tokenised;
- a row is BPE(MR), separator, BPE(" " + reference), end. Both are <|endoftext|>, or the model's end of text;
- the loss is the mean over the tokens of the reference and its end, with label smoothing over the whole
  vocabulary. The dev loss is not smoothed;
- a test MR is decoded once (tasks/beam.py) and scored against all its references (tasks/e2e_metrics.py).

Rows come from the hub, from the challenge's CSV files, or from files in microsoft/LoRA's format.
"""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.base import DataError, Source, block, check, fixed_subset, held_out, quoted
from tasks.continuations import Written
from tasks.e2e_files import OTHERWISE, Pair, local_files, read_pairs
from tasks.e2e_metrics import NO_JAVA, scores
from tasks.fetch import content, data_folder
from tasks.forgetting import fixed_text

PROTOCOL = 1

#: Rows that the challenge published.
ROWS = {"train": 42061, "dev": 4672, "test": 4693}

#: GPT-2's token between MR and reference, and at the end.
SEPARATOR = "<|endoftext|>"
#: Settings of the published runs.
PUBLISHED = {"label_smoothing": 0.1, "beams": 10, "no_repeat_ngram": 4, "max_new_tokens": 64}


class E2ETask(Written):
    """See the module. items: an MR and its references."""

    def __init__(
        self, settings: Any, splits: Mapping[str, list[Pair]], items: list[tuple[str, list[str]]]
    ) -> None:
        self.name, self.how = settings["name"], settings
        self.splits, self.items, self.split = dict(splits), items, settings["decode"]
        self.decodes = self.split != "none"
        self.block = block(settings)
        self.label_smoothing = settings["label_smoothing"]
        self.variants = [f"{penalty:g}" for penalty in settings["length_penalty"]]
        self.notes: list[str] = []
        self.fixed_text = fixed_text(settings)
        self._rows = {}
        self._prompts = []

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. By MR, since one MR has many references: no MR is in both parts."""
        if self.decodes:
            raise DataError(f"task.holdout={share:g} with task.decode={self.split}: set decode to none")
        pairs = self.splits["train"]
        mrs = list(dict.fromkeys(mr for mr, _ in pairs))
        held = {mrs[i] for i in held_out([0] * len(mrs), share, self.name)}
        train, dev = ([pair for pair in pairs if (pair[0] in held) is is_dev] for is_dev in (False, True))
        self.splits = {"train": train, "dev": dev}
        rows = f"{len(dev)} of {len(pairs)} training rows ({len(held)} of {len(mrs)} MRs)"
        self.notes.append(f"dev: {rows} held out (task.holdout={share:g}), the dev set is not used")

    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        # GPT-2's separator where the vocabulary has it: an instruction model's end token ends a turn
        self._end = SEPARATOR if SEPARATOR in tokenizer.get_vocab() else tokenizer.eos_token
        if self._end is None:
            raise DataError(f"{self.name}: the model's tokenizer has no end-of-text token")
        end = tokenizer.convert_tokens_to_ids(self._end)
        self._tokenizer = tokenizer
        self.prepare_text(tokenizer, positions)

        def ids(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

        for split, pairs in self.splits.items():
            prompts, references = ids([mr for mr, _ in pairs]), ids([f" {text}" for _, text in pairs])
            self._rows[split] = []
            for prompt, reference, (mr, _) in zip(prompts, references, pairs, strict=True):
                if len(prompt) + 2 > max_length:
                    raise DataError(f"train.max_length={max_length} leaves no reference to {quoted(mr)}")
                self._rows[split].append(([*prompt, end, *reference, end][:max_length], len(prompt)))
        self._prompts = [[*prompt, end] for prompt in ids([mr for mr, _ in self.items])]
        self.check_positions(self.how["max_new_tokens"], positions)
        blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        self.ends = (end, *blank) if len(blank) == 1 else (end,)

    # --- texts

    def settings(self) -> dict[str, Any]:
        keys = ("search", "beams", "length_penalty", "no_repeat_ngram", "max_new_tokens")
        return {key: self.how[key] for key in keys} | {"ends": list(self.ends)}

    def decode(self, model: Any, indices: Sequence[int]) -> list[dict[str, str]]:
        decoded = self.search(model, [self._prompts[i] for i in indices], self.how["max_new_tokens"])
        return [dict(zip(self.variants, map(self._text, texts), strict=True)) for texts in decoded]

    def search(self, model: Any, prompts: list[list[int]], steps: int) -> list[list[list[int]]]:
        """Token ids for each prompt and length penalty."""
        from tasks import beam  # imports torch, which a plan does not need

        how, penalties = self.how, tuple(map(float, self.how["length_penalty"]))
        search = beam.Search(how["beams"], penalties, how["no_repeat_ngram"], steps, self.ends)
        by = beam.beam_search if how["search"] == "lora" else beam.transformers_search
        return by(model, prompts, search)

    def _text(self, ids: list[int]) -> str:
        """The text before the first end token and the first blank line."""
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).split(self._end)[0].split("\n\n")[0].strip()

    def scores(self, texts: Sequence[str]) -> dict[str, Any]:
        return scores([references for _, references in self.items], texts)

    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """references.txt (a block for each MR) and NAME.txt (a line for each), which tuetschek/e2e-metrics
        reads."""
        blocks = ["".join(f"{line}\n" for line in [*references, ""]) for _, references in self.items]
        (folder / "references.txt").write_text("".join(blocks), encoding="utf-8")
        for name, lines in texts.items():
            content = "".join(f"{' '.join(line.split())}\n" for line in lines)
            (folder / f"{name}.txt").write_text(content, encoding="utf-8")


# --- rows


def source(settings: Any) -> Source:
    """See tasks.source."""
    _check(settings)
    if settings.get("data_dir"):
        return Source(files=local_files(Path(settings["data_dir"]), settings["decode"]))
    return Source(pinned=content(settings["hub"], settings.get("revision"), "dataset"))


def load(settings: Any) -> E2ETask:
    """See tasks.load. Raises DataError with file and line for a missing column, an unknown attribute or an
    empty reference."""
    _check(settings)
    folder = data_folder(settings, "*.parquet", "/where/e2e")
    files, split, name = local_files(folder, settings["decode"]), settings["decode"], settings["name"]
    rows = {split: list(read_pairs(path)) for split, path in files.items()}
    splits, notes = {}, []
    for part in ("train", "dev"):
        every = rows[part]
        splits[part] = [every[i] for i in fixed_subset(len(every), settings.get(f"{part}_rows"), name)]
        if (used := len(splits[part])) != ROWS[part]:
            of = "a fixed subset of" if used < len(every) else "the files hold"
            notes.append(f"{name} {part}: {used} rows ({of} {len(every)}); E2E has {ROWS[part]}")
    groups: dict[str, list[str]] = {}
    for mr, reference in rows.get(split, []):
        groups.setdefault(mr, []).append(reference)
    mrs = list(groups.items())
    task = E2ETask(settings, splits, [mrs[i] for i in fixed_subset(len(mrs), settings.get("items"), name)])
    if split == "none":
        notes.append("no texts are decoded")
    elif len(task.items) < len(mrs) or len(rows[split]) != ROWS[split]:
        notes.append(f"{len(task.items)} MRs are decoded, of {len(mrs)} in the {split} set")
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
        kept = {"search": "lora", "length_penalty": [0.9], "label_smoothing": settings["label_smoothing"]}
        settings = {**settings, **PUBLISHED, **kept}
    changed = [key for key, value in PUBLISHED.items() if settings[key] != value]
    words = [f"task.{key}={settings[key]}; the protocol's is {PUBLISHED[key]}" for key in changed]
    if float(settings["length_penalty"][0]) != 0.9:
        words.append(f"length penalty {settings['length_penalty'][0]}; the paper's is 0.9")
    if settings["decode"] == "dev":
        words.append("texts are decoded and scored on the dev set, not on the test set")
    if settings["search"] != "lora":
        words.append("decoded with transformers' own beam search, not microsoft/LoRA's")
    if settings["length_grouped"]:
        words.append("batches of like lengths; the protocol's are random")
    return words


def _check(settings: Any) -> None:
    """Raises DataError for settings out of range, which the types of the configuration do not catch."""
    for key, known in (("decode", ("test", "dev", "none")), ("search", ("lora", "transformers"))):
        check(settings, key, settings[key] in known, f"one of {', '.join(known)}")
    penalties = settings["length_penalty"]
    fit = bool(penalties) and all(type(p) in (int, float) and 0 <= p <= 10 for p in penalties)
    check(settings, "length_penalty", fit, "numbers from 0 to 10, such as [0.9,0.8]")
    if len(set(map(float, penalties))) < len(penalties):
        raise DataError(f"task.length_penalty={penalties}: the same number twice")
    for key in PUBLISHED:
        if settings[key] is None:
            raise DataError(f"task.{key}=null: should be a number, such as {PUBLISHED[key]}")
    smoothing, repeats = settings["label_smoothing"], settings["no_repeat_ngram"]
    check(settings, "label_smoothing", 0 <= smoothing < 1, "at least 0 and less than 1")
    check(settings, "no_repeat_ngram", repeats >= 0, "at least 0 (which allows repeats)")
    for key in ("beams", "max_new_tokens", "items", "train_rows", "dev_rows"):
        check(settings, key, settings[key] is None or settings[key] >= 1, "at least 1")
