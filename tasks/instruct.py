"""Instruction tuning on rows in Alpaca's format (Taori et al. 2023), as in the VeRA paper's tables 4, 9, 12
and 13.

A row is BOS (where the tokenizer writes one), prompt, response, end token. The prompt is a template's: see
Template. Only what predicts the response and its end is trained (tasks/continuations.py). The paper names no
dev set: `dev_rows` rows are held out from the published ones, the same for every run.

What a trained model says to MT-Bench's questions is asked by runs/answer.py, in the template's own words: a
conversation goes on after the end token of the answer before it."""

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import DataError, Source, block, check, fixed_subset, held_out, listed, parse_json, quoted
from tasks.continuations import Continuations, Row
from tasks.fetch.hub import content, data_folder
from tasks.mt_bench import BENCHES
from tasks.text import open_text

PROTOCOL = 1

#: Rows of yahma/alpaca-cleaned.
PUBLISHED = 51760
OWN_TEMPLATE = Path(__file__).parent / "templates" / "alpaca.json"
#: SHA-256 of Alpaca's own two prompts (PROMPT_DICT of
#: https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py), each as UTF-8 without the white space at
#: its end: that file ends them at the colon, alpaca-lora with a line's end, QLoRA with a space.
ALPACA = {
    "prompt_input": "28811e9850d9511bab334d167a03a8a37614535fdb28d645492efac8e9951c0f",
    "prompt_no_input": "35101bc36d10997c7d926d8f21f7d173aec6523f3a57d78821b944a89925cdca",
}
#: An answer that goes on with an instruction of its own, by Alpaca's marker.
STOP = "### Instruction"


@dataclass(frozen=True)
class Template:
    """The words around an instruction, in the keys of alpaca-lora's template files: prompt_input,
    prompt_no_input; and, both of which upstream's files lack, next_turn (for want of it, prompt_no_input from
    its last heading before the instruction on) and stop (Alpaca's marker, where the prompt has it)."""

    prompt_input: str
    prompt_no_input: str
    next_turn: str
    stop: str | None

    def prompt(self, instruction: str, input: str = "") -> str:
        """The text before a response."""
        form = self.prompt_input if input.strip() else self.prompt_no_input
        return form.format(instruction=instruction, input=input)

    @property
    def is_alpacas(self) -> bool:
        """Whether both prompts are Alpaca's own."""
        return all(
            hashlib.sha256(getattr(self, key).rstrip().encode()).hexdigest() == digest
            for key, digest in ALPACA.items()
        )

    def turn(self, instruction: str) -> str:
        """The text between the end of an answer and the next one."""
        return self.next_turn.format(instruction=instruction)


def read_template(path: Path) -> Template:
    """A template file (JSON). Raises DataError for a missing form, or a placeholder that is missing or not
    known."""
    try:
        with open_text(path) as file:
            found = parse_json(file.read(), str(path))
    except DataError as error:
        raise DataError(f"{error} (task.template)") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object with prompt_input and prompt_no_input (task.template)")
    plain = found.get("prompt_no_input")
    if isinstance(plain, str):
        heading = plain.rfind("###", 0, max(plain.find("{instruction"), 0))
        found = {
            "next_turn": "\n\n" + plain[max(heading, 0) :],
            "stop": STOP if STOP in plain else None,
        } | found
    for key, wanted in (
        ("prompt_input", "instruction input"),
        ("prompt_no_input", "instruction"),
        ("next_turn", "instruction"),
    ):
        text = found.get(key)
        if not isinstance(text, str):
            raise DataError(f"{path}: no text {key!r} (task.template)")
        try:
            parts = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            raise DataError(f"{path}: {key}: {error}. A brace of the text is written twice") from None
        fields = {str(name) for name, _, _ in parts}
        if fields != set(wanted.split()) or any(form or conversion for _, form, conversion in parts):
            names, there = ", ".join(f"{{{name}}}" for name in wanted.split()), quoted(sorted(fields))
            raise DataError(
                f"{path}: {key} has the placeholders {there}, it should have {names} and nothing in them"
            )
        _whole(f"{path}: {key}", text)
    if not isinstance(found["stop"], str | None) or found["stop"] == "":
        raise DataError(
            f"{path}: stop is {quoted(found['stop'])}, it should be a text or null (task.template)"
        )
    return Template(*(found[key] for key in ("prompt_input", "prompt_no_input", "next_turn", "stop")))


@dataclass(frozen=True)
class Example:
    """A row: what is asked, what it is about (often nothing), and the response."""

    instruction: str
    input: str
    output: str


class InstructTask(Continuations):
    """See the module."""

    def __init__(self, settings: Any, template: Template, splits: dict[str, list[Example]]) -> None:
        self.name, self.template, self.splits = settings["name"], template, splits
        self.block = block(settings)
        self.notes: list[str] = []
        self._rows = {}

    def hold_out(self, share: float) -> None:
        """See Task.hold_out."""
        rows = self.splits["train"]
        held = set(held_out([0] * len(rows), share, self.name))
        parts = [[row for i, row in enumerate(rows) if (i in held) is dev] for dev in (False, True)]
        self.splits = {"train": parts[0], "dev": parts[1]}
        self.notes.append(f"dev: {len(held)} of {len(rows)} training rows held out (task.holdout={share:g})")

    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"{self.name}: the model's tokenizer has no end-of-text token, which ends a response"
            )
        self.tokenizer, self.positions = tokenizer, positions
        short = 0
        for split, rows in self.splits.items():
            prompts = [self.template.prompt(row.instruction, row.input) for row in rows]
            asked = self._ids(prompts)
            whole = self._ids([prompt + row.output for prompt, row in zip(prompts, rows, strict=True)])
            found: list[Row] = []
            for prompt, both, row in zip(asked, whole, rows, strict=True):
                # As one text, for a response begins with another token after a line's end than by itself; but
                # what the model is asked with must be what it was trained with.
                if both[: len(prompt)] != prompt:
                    both = prompt + tokenizer(row.output, add_special_tokens=False)["input_ids"]
                ids = [*both, tokenizer.eos_token_id][:max_length]
                if len(ids) > len(prompt):
                    found.append((ids, len(prompt) - 1))
            short += len(rows) - len(found)
            self._rows[split] = found
            if not found:
                raise DataError(
                    f"{self.name}: train.max_length={max_length} leaves no room for a response in any"
                    f" {split} row"
                )
        if short:
            self.notes.append(f"{short} rows left out, whose prompt fills train.max_length={max_length}")

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids with what the tokenizer writes before a text, without an end token behind it."""
        found: list[list[int]] = self.tokenizer(texts)["input_ids"] if texts else []
        end = self.tokenizer.eos_token_id
        return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in found]

    def conversation(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """Token ids of a conversation up to where the next answer begins: a turn more than there are
        answers."""
        ids = self._ids([self.template.prompt(turns[0]) + (answers[0] if answers else "")])[0]
        for number, turn in enumerate(turns[1:], 1):
            text = self.template.turn(turn) + (answers[number] if number < len(answers) else "")
            ids = [
                *ids,
                self.tokenizer.eos_token_id,
                *self.tokenizer(text, add_special_tokens=False)["input_ids"],
            ]
        return ids


def source(settings: Any) -> Source:
    """See tasks.source. The template's words belong to the data."""
    _check(settings)
    template = Path(settings["template"] or OWN_TEMPLATE)
    if settings.get("data_dir"):
        if not template.is_file():
            raise DataError(f"{template}: no such file (task.template)")
        return Source(files={"rows.json": _local(Path(settings["data_dir"])), "template.json": template})
    pinned = content(settings["hub"], settings.get("revision"), "dataset")
    try:
        words = hashlib.sha256(template.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{template}: {error.strerror} (task.template)") from None
    return Source(pinned=pinned and f"{pinned} template:{words}")


def load(settings: Any) -> InstructTask:
    """See tasks.load. Raises DataError with file and row for what is no instruction with a response."""
    _check(settings)
    template = read_template(Path(settings["template"] or OWN_TEMPLATE))
    path = _local(data_folder(settings, "*.json", "/where/alpaca"))
    rows, name, count = read_rows(path), settings["name"], settings["dev_rows"]
    if len(rows) < count + 2:
        raise DataError(
            f"{path}: {len(rows)} rows, of which task.dev_rows={count} are held out: too few are left"
        )
    held = set(fixed_subset(len(rows), count, f"{name}, held out"))
    rest = [row for i, row in enumerate(rows) if i not in held]
    train = [rest[i] for i in fixed_subset(len(rest), settings["train_rows"], name)]
    task = InstructTask(settings, template, {"train": train, "dev": [rows[i] for i in sorted(held)]})
    if name == "alpaca" and len(rows) != PUBLISHED:
        task.notes.append(f"{name}: {len(rows)} rows; Alpaca-cleaned has {PUBLISHED}")
    if len(train) < len(rest):
        task.notes.append(f"{name} train: a fixed subset of {len(train)} rows, of {len(rest)}")
    if not template.is_alpacas:
        words = (
            f"by the template {Path(settings['template']).name}"
            if settings["template"]
            else "in this project's own words"
        )
        task.notes.append(f"prompts {words}, not Alpaca's")
    return task


def check_answers(settings: Any) -> None:
    """Raises DataError for a setting of the answers that cannot be: told before the training that comes
    first."""
    tokens, top_p, top_k = (settings[key] for key in ("answer_tokens", "top_p", "top_k"))
    check(settings, "bench", settings["bench"] in BENCHES, f"one of {', '.join(BENCHES)}")
    check(settings, "answer_tokens", type(tokens) is int and tokens >= 1, "a whole number of at least 1")
    share = type(top_p) in (int, float) and 0 < top_p <= 1
    check(settings, "top_p", share, "above 0 and at most 1 (which samples from all)")
    count = top_k is None or (type(top_k) is int and top_k >= 1)
    check(settings, "top_k", count, "a whole number of at least 1, or null for all")


def _check(settings: Any) -> None:
    check_answers(settings)
    fits = type(settings["dev_rows"]) is int and settings["dev_rows"] >= 2
    check(settings, "dev_rows", fits, "at least 2 rows, which are held out from training")


def _local(folder: Path) -> Path:
    """The file of rows: the one given, or the only JSON file of a folder (or of the folders in it)."""
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (task.data_dir)")
    for pattern in ("*.json", "*/*.json"):
        found = sorted(
            path for path in folder.glob(pattern) if path.is_file() and path.name != "dataset_infos.json"
        )
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path.relative_to(folder)) for path in found[:4])
            raise DataError(
                f"{folder}: {len(found)} JSON files ({names}). Give one (task.data_dir=/its/file.json)"
            )
    raise DataError(f"{folder}: no JSON file with rows in Alpaca's format (task.data_dir)")


def read_rows(path: Path) -> list[Example]:
    """Rows in Alpaca's format: a JSON list of instruction, input (may be left out) and output; or one object
    a line."""
    with open_text(path) as file:
        if path.suffix == ".jsonl":
            rows = [
                parse_json(line, f"{path} row {number}") for number, line in enumerate(file) if line.strip()
            ]
        else:
            instead = "Give JSON lines: an object a line, in a file named .jsonl"
            rows = parse_json(file.read(instead), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: not a list of rows with instruction, input and output")
    return [_example(row, f"{path} row {number}") for number, row in enumerate(rows)]


def _example(row: Any, where: str) -> Example:
    if not isinstance(row, Mapping) or not {"instruction", "output"} <= row.keys():
        keys = listed(row) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"{where}: no instruction with an output. It has: {keys or 'nothing'}")
    parts = row["instruction"], row.get("input") or "", row["output"]
    if not all(isinstance(part, str) for part in parts):
        raise DataError(f"{where}: instruction, input and output should be texts")
    if not parts[0].strip() or not parts[2].strip():
        raise DataError(f"{where}: an empty {'instruction' if not parts[0].strip() else 'output'}")
    _whole(where, "".join(parts))
    return Example(*parts)


def _whole(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: half a character (a lone surrogate), which no tokenizer takes") from None
