"""Instruction tuning on rows in Alpaca's format (Taori et al. 2023), as in the VeRA paper's tables 4, 9, 12
and 13.

A row is BOS (where the tokenizer writes one), prompt, response, end token. A template makes the prompt (see
Template). The loss is over the response and its end (tasks/continuations.py). The paper names no dev set:
`dev_rows` rows are held out from the published ones, the same for every run.

runs/answer.py asks a trained model MT-Bench's questions, with the same template. The second turn follows the
end token of the first answer."""

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import DataError, Source, block, check, fixed_subset, held_out, listed, parse_json, quoted
from tasks.continuations import Continuations
from tasks.fetch.hub import content, data_folder
from tasks.files import only_file
from tasks.forgetting import fixed_text
from tasks.mt_bench import BENCHES
from tasks.text import open_text

PROTOCOL = 1

#: Rows of yahma/alpaca-cleaned.
PUBLISHED = 51760
OWN_TEMPLATE = Path(__file__).parent / "templates" / "alpaca.json"
#: SHA-256 of Alpaca's own two prompts (PROMPT_DICT of
#: https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py), each as UTF-8 without white space at the
#: end: there it has none, in alpaca-lora a line's end, in QLoRA a space.
ALPACA = {
    "prompt_input": "28811e9850d9511bab334d167a03a8a37614535fdb28d645492efac8e9951c0f",
    "prompt_no_input": "35101bc36d10997c7d926d8f21f7d173aec6523f3a57d78821b944a89925cdca",
}
#: Alpaca's marker of an instruction. An answer is cut where it writes one.
STOP = "### Instruction"


@dataclass(frozen=True)
class Template:
    """The text around an instruction.

    prompt_input, prompt_no_input: as in alpaca-lora's template files, which lack the other two. next_turn: by
    default prompt_no_input from the last heading before the instruction on. stop: by default Alpaca's marker,
    if prompt_no_input has it."""

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
        prompts = {key: getattr(self, key).rstrip().encode() for key in ALPACA}
        return {key: hashlib.sha256(text).hexdigest() for key, text in prompts.items()} == ALPACA

    def turn(self, instruction: str) -> str:
        """The text between two answers: the next instruction."""
        return self.next_turn.format(instruction=instruction)


def read_template(path: Path) -> Template:
    """A template file (JSON). Raises DataError for a missing key, or placeholders other than the expected."""
    try:
        with open_text(path) as file:
            keys = parse_json(file.read(), str(path))
    except DataError as error:
        raise DataError(f"{error} (task.template)") from None
    if not isinstance(keys, dict):
        raise DataError(f"{path}: not a JSON object with prompt_input and prompt_no_input (task.template)")
    plain = keys.get("prompt_no_input")
    if isinstance(plain, str):
        heading = plain.rfind("###", 0, max(plain.find("{instruction"), 0))
        next_turn = "\n\n" + plain[max(heading, 0) :]
        keys = {"next_turn": next_turn, "stop": STOP if STOP in plain else None} | keys
    one = ["instruction"]
    expected = {"prompt_input": [*one, "input"], "prompt_no_input": one, "next_turn": one}
    for key, names in expected.items():
        _check_placeholders(f"{path}: {key}", keys.get(key), names)
    stop = keys["stop"]
    if not isinstance(stop, str | None) or stop == "":
        raise DataError(f"{path}: stop is {quoted(stop)}, it should be a text or null (task.template)")
    return Template(**{key: keys[key] for key in expected}, stop=stop)


def _check_placeholders(where: str, text: Any, names: list[str]) -> None:
    """Raises DataError unless the text has exactly these placeholders, without a format or conversion."""
    if not isinstance(text, str):
        raise DataError(f"{where} should be a text (task.template)")
    try:
        parts = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise DataError(f"{where}: {error}. A brace of the text is written twice") from None
    fields = {str(name) for name, _, _ in parts}
    if fields != set(names) or any(form or conversion for _, form, conversion in parts):
        expected = ", ".join(f"{{{name}}}" for name in names)
        problem = f"has the placeholders {quoted(sorted(fields))}"
        raise DataError(f"{where} {problem}, it should have {expected} and nothing in them")


@dataclass(frozen=True)
class Example:
    """A row: an instruction, its input (often empty), and the response."""

    instruction: str
    input: str
    output: str


class InstructTask(Continuations):
    """See the module."""

    def __init__(self, settings: Any, template: Template, splits: dict[str, list[Example]]) -> None:
        self.name, self.template, self.splits = settings["name"], template, splits
        self.block = block(settings)
        self.notes: list[str] = []
        self.fixed_text = fixed_text(settings)
        self._rows = {}

    def hold_out(self, share: float) -> None:
        """See Task.hold_out."""
        rows = self.splits["train"]
        held = set(held_out([0] * len(rows), share, self.name))
        rest = [row for i, row in enumerate(rows) if i not in held]
        self.splits = {"train": rest, "dev": [rows[i] for i in sorted(held)]}
        self.notes.append(f"dev: {len(held)} of {len(rows)} training rows held out (task.holdout={share:g})")

    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError(f"{self.name}: the model's tokenizer has no end-of-text token")
        self.tokenizer, self.positions = tokenizer, positions
        self.prepare_text(tokenizer, positions)
        left_out = 0
        for split, rows in self.splits.items():
            texts = [self.template.prompt(row.instruction, row.input) for row in rows]
            prompts = self._ids(texts)
            whole = self._ids([text + row.output for text, row in zip(texts, rows, strict=True)])
            self._rows[split] = []
            for prompt, both, row in zip(prompts, whole, rows, strict=True):
                # Prompt and response are tokenised as one text, unless that changes the prompt's own tokens:
                # at the end the model is asked with these
                if both[: len(prompt)] != prompt:
                    both = prompt + tokenizer(row.output, add_special_tokens=False)["input_ids"]
                ids = [*both, tokenizer.eos_token_id][:max_length]
                if len(ids) > len(prompt):
                    self._rows[split].append((ids, len(prompt) - 1))
            left_out += len(rows) - len(self._rows[split])
            if not self._rows[split]:
                raise DataError(f"train.max_length={max_length} leaves no {split} row a response")
        if left_out:
            self.notes.append(f"{left_out} rows left out, whose prompt fills train.max_length={max_length}")

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids, with the tokenizer's BOS if it has one, without an end token."""
        rows: list[list[int]] = self.tokenizer(texts)["input_ids"] if texts else []
        end = self.tokenizer.eos_token_id
        return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in rows]

    def conversation(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """Token ids of a conversation up to the next answer. There is one turn more than answers."""
        prompts = [self.template.prompt(turns[0]), *map(self.template.turn, turns[1:])]
        first, *more = [prompt + answer for prompt, answer in zip(prompts, [*answers, ""], strict=True)]
        ids = self._ids([first])[0]
        for text in more:
            ids += [self.tokenizer.eos_token_id, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        return ids


def source(settings: Any) -> Source:
    """See tasks.source. The template is part of the data."""
    _check(settings)
    template = Path(settings["template"] or OWN_TEMPLATE)
    if settings.get("data_dir"):
        if not template.is_file():
            raise DataError(f"{template}: no such file (task.template)")
        return Source(files={"rows.json": _local(Path(settings["data_dir"])), "template.json": template})
    pinned = content(settings["hub"], settings.get("revision"), "dataset")
    try:
        digest = hashlib.sha256(template.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{template}: {error.strerror} (task.template)") from None
    return Source(pinned=pinned and f"{pinned} template:{digest}")


def load(settings: Any) -> InstructTask:
    """See tasks.load. Raises DataError with file and row for one without an instruction or response."""
    _check(settings)
    template = read_template(Path(settings["template"] or OWN_TEMPLATE))
    path = _local(data_folder(settings, "*.json", "/where/alpaca"))
    rows, name, count = read_rows(path), settings["name"], settings["dev_rows"]
    if len(rows) < count + 2:
        raise DataError(f"{path}: {len(rows)} rows are too few for task.dev_rows={count}")
    held = set(fixed_subset(len(rows), count, f"{name}, held out"))
    rest = [row for i, row in enumerate(rows) if i not in held]
    train = [rest[i] for i in fixed_subset(len(rest), settings["train_rows"], name)]
    task = InstructTask(settings, template, {"train": train, "dev": [rows[i] for i in sorted(held)]})
    if name == "alpaca" and len(rows) != PUBLISHED:
        task.notes.append(f"{name}: {len(rows)} rows; Alpaca-cleaned has {PUBLISHED}")
    if len(train) < len(rest):
        task.notes.append(f"{name} train: a fixed subset of {len(train)} rows, of {len(rest)}")
    if not template.is_alpacas:
        own = settings["template"] and f"by the template {Path(settings['template']).name}"
        words = own or "in this project's own words"
        task.notes.append(f"prompts {words}, not Alpaca's")
    return task


def check_answers(settings: Any) -> None:
    """Raises DataError for a setting of the answers that is out of range; called before training."""
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
    if path := only_file(folder, "*.json", "*/*.json", without="dataset_infos.json"):
        return path
    raise DataError(f"{folder}: no JSON file with rows in Alpaca's format (task.data_dir)")


def read_rows(path: Path) -> list[Example]:
    """Rows in Alpaca's format: a JSON list of objects with instruction, input (optional) and output, or JSON
    lines. Rows are numbered from 0."""
    with open_text(path) as file:
        if path.suffix == ".jsonl":
            lines = [(f"{path} row {number}", line) for number, line in enumerate(file) if line.strip()]
            return [_example(parse_json(line, where), where) for where, line in lines]
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
    return Example(*parts)
