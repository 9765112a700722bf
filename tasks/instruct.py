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

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.base import DataError, Source, check, fixed_subset
from tasks.continuations import Continuations, token_ids
from tasks.fetch import content, data_folder
from tasks.files import open_text, placeholders, read_list, the_file, validated

PROTOCOL = 1

#: Rows of yahma/alpaca-cleaned.
PUBLISHED = 51760
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


NotBlank = Annotated[str, Field(pattern=r"\S")]


class Example(BaseModel):
    """A row: an instruction, its input (often empty), and the response."""

    instruction: NotBlank
    input: str | None = None
    output: NotBlank


class Template(BaseModel):
    """The text around an instruction.

    prompt_input, prompt_no_input: as in alpaca-lora's template files, which lack the
    others. next_turn: by default prompt_no_input from the heading of the instruction
    on. stop: Alpaca's marker, if that has it."""

    model_config = ConfigDict(frozen=True)

    prompt_input: str
    prompt_no_input: str
    next_turn: str
    stop: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, keys: Any) -> Any:
        plain = keys.get("prompt_no_input") if isinstance(keys, dict) else None
        if not isinstance(plain, str):
            return keys
        heading = plain.rfind("###", 0, max(plain.find("{instruction"), 0))
        next_turn = "\n\n" + plain[max(heading, 0) :]
        return {"next_turn": next_turn, "stop": STOP if STOP in plain else None} | keys

    @field_validator("prompt_input", "prompt_no_input", "next_turn")
    @classmethod
    def _placeholders(cls, text: str, info: Any) -> str:
        names = (
            {"instruction", "input"}
            if info.field_name == "prompt_input"
            else {"instruction"}
        )
        if placeholders(text) != names:
            expected = " and ".join(
                f"{{{name}}}" for name in sorted(names, reverse=True)
            )
            raise ValueError(
                f"the placeholders should be {expected}; a brace of the text is written twice"
            )
        return text

    def prompt(self, instruction: str, input: str | None = None) -> str:
        """The text before a response."""
        form = self.prompt_input if input and input.strip() else self.prompt_no_input
        return form.format(instruction=instruction, input=input)

    def pairs(self, rows: Iterable[Example]) -> list[tuple[str, str]]:
        """The texts before the responses of rows, and the responses."""
        return [(self.prompt(row.instruction, row.input), row.output) for row in rows]

    @property
    def is_alpacas(self) -> bool:
        """Whether both prompts are Alpaca's own."""
        prompts = {key: getattr(self, key).rstrip().encode() for key in ALPACA}
        return {
            key: hashlib.sha256(text).hexdigest() for key, text in prompts.items()
        } == ALPACA

    def turn(self, instruction: str) -> str:
        """The text between two answers: the next instruction."""
        return self.next_turn.format(instruction=instruction)


def template_file(settings: Any) -> Path:
    """The file of task.template, null for this project's own. Raises DataError where
    there is none."""
    path = Path(settings["template"] or OWN_TEMPLATE)
    if not path.is_file():
        raise DataError(f"{path}: no such file (task.template)")
    return path


def other_words(settings: Any, template: Template) -> list[str]:
    """A note where a template's words are not Alpaca's."""
    own = settings["template"] and f"by the template {Path(settings['template']).name}"
    words = own or "in this project's own words"
    return [] if template.is_alpacas else [f"prompts {words}, not Alpaca's"]


def read_template(path: Path) -> Template:
    """A template file (JSON). Raises DataError for a missing key, or placeholders other
    than the expected."""
    with open_text(path) as file:
        return validated(Template, file.read(), f"{path} (task.template)")


class InstructTask(Continuations):
    """See the module."""

    def __init__(
        self, settings: Any, template: Template, splits: Mapping[str, list[Example]]
    ) -> None:
        super().__init__(
            settings, {split: template.pairs(rows) for split, rows in splits.items()}
        )
        self.template = template

    def conversation(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """Token ids of a conversation up to the next answer. There is one turn more
        than answers."""
        prompts = [self.template.prompt(turns[0]), *map(self.template.turn, turns[1:])]
        first, *more = [
            prompt + answer
            for prompt, answer in zip(prompts, [*answers, ""], strict=True)
        ]
        ids = token_ids(self.tokenizer, [first])[0]
        for text in more:
            ids += [
                self.tokenizer.eos_token_id,
                *self.tokenizer(text, add_special_tokens=False)["input_ids"],
            ]
        return ids


def source(settings: Any) -> Source:
    """See tasks.source. The template is part of the data."""
    template = template_file(settings)
    if settings.get("data_dir"):
        return Source(
            files={
                "rows.json": _local(Path(settings["data_dir"])),
                "template.json": template,
            }
        )
    pinned = content(settings["hub"], settings.get("revision"), "dataset")
    digest = hashlib.sha256(template.read_bytes()).hexdigest()[:16]
    return Source(pinned=pinned and f"{pinned} template:{digest}")


def load(settings: Any) -> InstructTask:
    """See tasks.load. Raises DataError with file and row for one without an instruction
    or response."""
    template = read_template(template_file(settings))
    path = _local(data_folder(settings, ["*.json"], "/where/alpaca"))
    rows, name = [row for _, row in read_list(path, Example)], settings["name"]
    splits, notes = split_rows(
        settings, rows, path, partial(fixed_subset, name=f"{name}, held out")
    )
    task = InstructTask(settings, template, splits)
    if name == "alpaca" and len(rows) != PUBLISHED:
        task.notes.append(f"{name}: {len(rows)} rows; Alpaca-cleaned has {PUBLISHED}")
    task.notes += [*notes, *other_words(settings, template)]
    return task


def split_rows(
    settings: Any, rows: list[Example], path: Path, draw: Callable[..., Iterable[int]]
) -> tuple[dict[str, list[Example]], list[str]]:
    """train and dev: those that draw(all, task.dev_rows) holds out, and a fixed subset
    of the others, which a note says. Raises DataError where there are too few."""
    name, count = settings["name"], settings["dev_rows"]
    check(
        settings,
        "dev_rows",
        type(count) is int and count >= 2,
        "at least 2 rows, which are held out",
    )
    if len(rows) < count + 2:
        raise DataError(
            f"{path}: {len(rows)} rows are too few for task.dev_rows={count}"
        )
    held = {*draw(len(rows), count)}
    rest = [row for i, row in enumerate(rows) if i not in held]
    train = [rest[i] for i in fixed_subset(len(rest), settings["train_rows"], name)]
    notes = [f"{name} train: a fixed subset of {len(train)} rows, of {len(rest)}"]
    return {"train": train, "dev": [rows[i] for i in sorted(held)]}, notes * (
        len(train) < len(rest)
    )


def _local(folder: Path) -> Path:
    """The file of rows: the one given, or the only JSON file of a folder (or of the
    folders in it)."""
    return (
        folder
        if folder.is_file()
        else the_file(folder, "data_dir", "*.json", "*/*.json")
    )
