"""Instruction tuning on rows in Alpaca's format (Taori et al. 2023), as in VeRA's
tables 4, 9, 12 and 13.

A row is BOS (where the tokenizer writes one), prompt, response, end token. A template
makes the prompt (see Template). The loss is over the response and its end
(tasks/continuations.py). The paper names no dev set: `dev_rows` rows are held out from
the published ones, the same for every run.

runs/answer.py asks MT-Bench's questions by the same template. A second turn follows the
first's end token."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.base import DataError, Settings, Source, check_setting, fixed_subset
from tasks.continuations import Continuations, token_ids
from tasks.fetch import data_folder, pinned_content
from tasks.files import open_text, placeholders, read_list, require_file, validated

PROTOCOL = 1

#: How many rows yahma/alpaca-cleaned has.
PUBLISHED = 51760
#: The template of this project, whose words are not Alpaca's.
OWN_TEMPLATE = Path(__file__).parent / "templates" / "alpaca.json"
#: SHA-256 of Alpaca's own two prompts (PROMPT_DICT of
#: https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py), each as UTF-8
#: without white space at the end: there it has none, in alpaca-lora a line's end, in
#: QLoRA a space.
ALPACA = {
    "prompt_input": "28811e9850d9511bab334d167a03a8a37614535fdb28d645492efac8e9951c0f",
    "prompt_no_input": "35101bc36d10997c7d926d8f21f7d173aec6523f3a57d78821b944a89925cdca",
}
#: Alpaca's marker of an instruction. An answer is cut where it writes one.
STOP = "### Instruction"


#: A text with more than white space in it.
NotBlank = Annotated[str, Field(pattern=r"\S")]


class Example(BaseModel):
    """A row: an instruction, its input (often empty), and the response."""

    instruction: NotBlank
    input: str | None = None
    output: NotBlank


class Template(BaseModel):
    """The text around an instruction.

    prompt_input, prompt_no_input: the prompts of a row with and without an input, as in
    alpaca-lora's template files, which have only these two. next_turn: what follows an
    answer; by default prompt_no_input from the heading of the instruction on. stop:
    where an answer is cut; by default Alpaca's marker, if prompt_no_input has it."""

    model_config = ConfigDict(frozen=True)

    prompt_input: str
    prompt_no_input: str
    next_turn: str
    stop: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, keys: Any) -> Any:
        """Adds the defaults of next_turn and stop (see the class) to a file's keys. Whatever
        else may be wrong with the keys, pydantic finds later."""
        plain = keys.get("prompt_no_input") if isinstance(keys, dict) else None
        if not isinstance(plain, str):
            return keys
        # The heading is the last ### before the instruction, or the start of the prompt
        instruction = max(plain.find("{instruction"), 0)
        heading = max(plain.rfind("###", 0, instruction), 0)
        defaults = {
            "next_turn": "\n\n" + plain[heading:],
            "stop": STOP if STOP in plain else None,
        }
        return defaults | keys

    @field_validator("prompt_input", "prompt_no_input", "next_turn")
    @classmethod
    def _placeholders(cls, text: str, info: ValidationInfo) -> str:
        """Checks that a field has {instruction}, prompt_input also {input}, and no other
        placeholder."""
        names = ["instruction"]
        if info.field_name == "prompt_input":
            names.append("input")
        if placeholders(text) != set(names):
            expected = " and ".join(f"{{{name}}}" for name in names)
            raise ValueError(
                f"the placeholders should be {expected}; a brace of the text is written "
                "twice"
            )
        return text

    def prompt(self, instruction: str, input: str | None = None) -> str:
        """The text before a response. input: None or blank for an instruction without
        one."""
        has_input = bool(input and input.strip())
        template = self.prompt_input if has_input else self.prompt_no_input
        return template.format(instruction=instruction, input=input)

    def pairs(self, rows: Iterable[Example]) -> list[tuple[str, str]]:
        """The prompt and the response of each row."""
        return [(self.prompt(row.instruction, row.input), row.output) for row in rows]

    @property
    def is_alpacas(self) -> bool:
        """Whether both prompts are Alpaca's own."""
        for key, sha256 in ALPACA.items():
            prompt = getattr(self, key).rstrip()
            if hashlib.sha256(prompt.encode()).hexdigest() != sha256:
                return False
        return True

    def turn(self, instruction: str) -> str:
        """The text between two answers: the next instruction."""
        return self.next_turn.format(instruction=instruction)


def template_file(settings: Settings) -> Path:
    """The file of task.template, or this project's own where that is null. Raises DataError
    for a file that does not exist."""
    path = Path(settings["template"] or OWN_TEMPLATE)
    if not path.is_file():
        raise DataError(f"{path}: no such file (task.template)")
    return path


def notes_on_template(settings: Settings, template: Template) -> list[str]:
    """A note where a template's words are not Alpaca's."""
    if template.is_alpacas:
        return []
    words = "in this project's own words"
    if settings["template"]:
        words = f"by the template {Path(settings['template']).name}"
    return [f"prompts {words}, not Alpaca's"]


def read_template(path: Path) -> Template:
    """Reads a template file (JSON). Raises DataError for a missing key, or for other
    placeholders than those of Template."""
    with open_text(path) as file:
        return validated(Template, file.read(), f"{path} (task.template)")


class InstructTask(Continuations):
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        template: Template,
        splits: Mapping[str, list[Example]],
    ) -> None:
        pairs = {split: template.pairs(rows) for split, rows in splits.items()}
        super().__init__(settings, pairs)
        self.template = template

    def conversation(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """The token ids of a conversation, up to where the next answer begins. Each answer
        is followed by the end token.

        Args:
            turns: the user's messages.
            answers: the model's answers to all of them but the last."""
        prompts = [self.template.prompt(turns[0])]
        prompts += [self.template.turn(turn) for turn in turns[1:]]
        texts = [
            prompt + answer
            for prompt, answer in zip(prompts, [*answers, ""], strict=True)
        ]
        ids = token_ids(self.tokenizer, texts[:1])[0]
        for text in texts[1:]:
            encoded = self.tokenizer(text, add_special_tokens=False)
            ids += [self.tokenizer.eos_token_id, *encoded["input_ids"]]
        return ids


def source(settings: Settings) -> Source:
    """See tasks.source. The template is part of the data."""
    template = template_file(settings)
    if settings.get("data_dir"):
        rows = _rows_file(Path(settings["data_dir"]))
        return Source(files={"rows.json": rows, "template.json": template})
    pinned = pinned_content(settings["hub"], settings.get("revision"), "dataset")
    if pinned is None:
        return Source()
    digest = hashlib.sha256(template.read_bytes()).hexdigest()[:16]
    return Source(pinned=f"{pinned} template:{digest}")


def load(settings: Settings) -> InstructTask:
    """See tasks.load. Raises DataError with file and row for one without an instruction
    or response."""
    name = settings["name"]
    template = read_template(template_file(settings))
    path = _rows_file(data_folder(settings, ["*.json"], "/where/alpaca"))
    rows = [row for _, row in read_list(path, Example)]
    draw = partial(fixed_subset, name=f"{name}, held out")
    splits, notes = split_rows(settings, rows, path, draw)
    task = InstructTask(settings, template, splits)
    if name == "alpaca" and len(rows) != PUBLISHED:
        task.notes.append(f"{name}: {len(rows)} rows; Alpaca-cleaned has {PUBLISHED}")
    task.notes += [*notes, *notes_on_template(settings, template)]
    return task


def split_rows(
    settings: Settings,
    rows: list[Example],
    path: Path,
    draw: Callable[[int, int], Iterable[int]],
) -> tuple[dict[str, list[Example]], list[str]]:
    """The rows of train and dev by split, and notes for the record. train has a fixed subset
    of the rows that are not in dev, of task.train_rows.

    Args:
        rows: all rows of the file.
        path: of the file, for the error.
        draw: called with len(rows) and task.dev_rows; gives the indices of the dev rows.

    Raises DataError where there are too few rows."""
    name = settings["name"]
    count = settings["dev_rows"]
    is_enough = type(count) is int and count >= 2  # True is an instance of int
    expected = "at least 2 rows, which are held out"
    check_setting(settings, "dev_rows", is_enough, expected)
    if len(rows) < count + 2:
        raise DataError(
            f"{path}: {len(rows)} rows are too few for task.dev_rows={count}"
        )
    dev_indices = set(draw(len(rows), count))
    dev = [rows[i] for i in sorted(dev_indices)]
    remaining = [row for i, row in enumerate(rows) if i not in dev_indices]
    indices = fixed_subset(len(remaining), settings["train_rows"], name)
    train = [remaining[i] for i in indices]
    notes = []
    if len(train) < len(remaining):
        notes.append(
            f"{name} train: a fixed subset of {len(train)} rows, of {len(remaining)}"
        )
    return {"train": train, "dev": dev}, notes


def _rows_file(folder: Path) -> Path:
    """The file of rows: `folder` itself where it is a file, or the only JSON file in it or
    in its subfolders."""
    if folder.is_file():
        return folder
    return require_file(folder, "data_dir", "*.json", "*/*.json")
