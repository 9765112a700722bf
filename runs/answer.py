"""Has a finished run's model answer the questions of MT-Bench or Vicuna-bench.

vera-bench answer RUN [RUN ...]
    RUN is a run id, or its beginning, as in outputs/records
vera-bench answer experiment=table4_llama2_7b
    every finished run of a preset, or of other overrides
vera-bench answer RUN task.mt_bench_dir=/where/llm_judge/data
    questions from a local copy of FastChat's data folder
vera-bench answer RUN task.bench=vicuna_bench task.answer_tokens=512 \\
        task.top_p=0.9 task.top_k=50 eval_batch=8
    the questions of Vicuna-bench, with settings of your own

Answers are saved as they come. If the command is killed, the same command continues.
The answers are in outputs/runs/RUN/BENCH.jsonl, in FastChat's format, and the settings
that produced them in BENCH.json. Questions of one temperature are answered in batches,
each with its own seed, so the size of a batch is one of these settings. Let
`vera-bench judge` score the answers next.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import ValidationError

from runs.command.advice import describe_mistake
from runs.command.errors import UserError
from runs.command.parser import CommandLine, RecordSettings, entry_point, setting
from runs.config.schema import TaskSection
from runs.evaluate import Report, finished_records, read_line, restore
from runs.machine.locks import holding, run_lock
from runs.record.cell import hash_of
from runs.record.configuration import Configuration, TaskConfig
from runs.record.files import write_atomically
from runs.record.keys import Count
from runs.record.ledger import run_folder
from runs.record.schema import Record
from runs.run.identity import data_content
from tasks.instruct import InstructTask
from tasks.mt_bench import (
    BENCHES,
    Question,
    bench_folder,
    read_questions,
    temperature,
    write_answers,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from runs.sweep.display import Display
    from runs.training.context import Context

#: Questions of a batch, at most: an answer is many times as long as a row of the
#: evaluation.
LARGEST_BATCH = 16
#: The version of how answers are drawn: those of another one are not taken up.
SAMPLING = 2


@dataclass(frozen=True)
class BenchSettings(RecordSettings):
    """Settings that `vera-bench judge` has, too. null: as in the run's configuration."""

    bench: str | None = setting(None, "mt_bench or vicuna_bench", "task.bench")
    mt_bench_dir: str | None = setting(
        None, "a copy of FastChat's llm_judge/data", "task.mt_bench_dir"
    )


@dataclass(frozen=True)
class Settings(BenchSettings):
    """And how answers are sampled. null: as in the run's configuration."""

    answer_tokens: int | None = setting(
        None, "the longest answer", "task.answer_tokens"
    )
    top_p: float | None = setting(
        None, "tokens are drawn from this share of the chances", "task.top_p"
    )
    top_k: int | None = setting(
        None, "and from so many; null here: from all", "task.top_k"
    )
    eval_batch: Count | None = setting(
        None, f"questions answered at once, at most {LARGEST_BATCH}"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] | None = setting(
        None, "where they are answered"
    )


def main(arguments: list[str]) -> int:
    from runs.sweep.display import Display, heads

    line = read_line(arguments, Settings)
    records = answerable_records(line)
    configs = [config_with_settings(record, line) for record in records]
    for config in configs:  # every question file before the first model
        read_questions(bench_folder(config["task"]), config["task"]["bench"])
    display = Display()
    names = []
    for record in records:
        names.append(f"{record['label']['row']} seed {record['cell']['seed']}")
    for record, config, name, head in zip(
        records, configs, names, heads(names), strict=True
    ):
        bench = config["task"]["bench"]
        lock = run_lock(config["output"], f"{record['id']}-{bench}")
        with holding(lock, f"{bench} of {name}"):
            path, cut_answers = answer(record, config, _report_to(display, head))
        text = f"{head}  answers: {path}"
        if cut_answers:
            text += (
                f" ({cut_answers} cut short or left empty: the model has no more "
                "positions)"
            )
        display.line(text)
    return 0


def _report_to(display: "Display", head: str) -> Report:
    """Shows the events of a run below its head."""
    return lambda event: display.show([(head, event)])


def answerable_records(line: CommandLine[BenchSettings]) -> list[Record]:
    """The runs of `finished_records`. Raises UserError for a task other than
    instruction tuning."""
    records = finished_records(line)
    for record in records:
        if record["config"]["task"].get("family") != "instruct":
            raise UserError(
                f"run {record['id']} is on {record['label']['task']}: questions are for"
                " instruction tuning, such as alpaca"
            )
    return records


def config_with_settings(
    record: Record, line: CommandLine[BenchSettings]
) -> Configuration:
    """The record's configuration with the command's own settings. Raises UserError for
    one that cannot be."""
    config: dict[str, Any] = {**record["config"], "output": line.settings.output}
    for key in ("eval_batch", "device"):
        if key in line.given:
            config[key] = line.given[key]
    task = {}
    for key, value in config["task"].items():
        task[key] = line.given.get(f"task.{key}", value)
    try:
        TaskSection.model_validate(task)
    except ValidationError as error:
        raise UserError(describe_mistake(error, parent_key="task")) from None
    return cast(Configuration, config | {"task": task})


def answers_path(output: str, run: str, bench: str) -> Path:
    """Where a run's answers lie."""
    return run_folder(output, run) / f"{bench}.jsonl"


@dataclass(frozen=True)
class Turn:
    """A turn of all questions.

    Attributes:
        index: from 0.
        prompts: the token ids of each question's conversation so far.
        rooms: the tokens that each answer may have.
    """

    index: int
    prompts: list[list[int]]
    rooms: list[int]


def answer(record: Record, config: Configuration, report: Report) -> tuple[Path, int]:
    """Answers every question without an answer. Returns the file, and how many the
    model's positions cut.

    Raises UserError where the prompt's template or the training rows have changed since
    the run."""
    from runs.training.decode import hash_of_trained

    settings = config["task"]
    bench = settings["bench"]
    questions = read_questions(bench_folder(settings), bench)
    path = answers_path(config["output"], record["id"], bench)
    _check_prompts(record, settings)
    context = restore({**record, "config": config}, config["output"], report=report)
    about = {
        "run": record["id"],
        "weights": hash_of_trained(context),
        "bench": bench,
        "sampling": SAMPLING,
        "answer_tokens": settings["answer_tokens"],
        "top_p": settings["top_p"],
        "top_k": settings["top_k"],
        "batch": min(config["eval_batch"] or LARGEST_BATCH, LARGEST_BATCH),
    }
    generate_settings = _generate_settings(context, questions)
    answers = {question.id: list[str]() for question in questions}
    cut_answers = 0
    for index in range(BENCHES[bench]):
        turn = _turn(context, questions, answers, index)
        cut_answers += sum(room < settings["answer_tokens"] for room in turn.rooms)
        texts = _answer_turn(context, questions, turn, path, about)
        for question, text in zip(questions, texts, strict=True):
            answers[question.id].append(text)
    write_answers(path, record["id"], answers, questions)
    about |= {"without_room": cut_answers, "generate": generate_settings}
    write_atomically(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    return path, cut_answers


def _check_prompts(record: Record, settings: TaskConfig) -> None:
    """Raises UserError where a run's prompts would be others now."""
    if data_content(record["config"]["task"]) != record["data"]["content"]:
        template = settings["template"] or "the template"
        raise UserError(
            f"{template} or the rows have changed since run {record['id']}: the model "
            "was trained on other prompts"
        )


def _turn(
    context: "Context",
    questions: Sequence[Question],
    answers: Mapping[int, Sequence[str]],
    index: int,
) -> Turn:
    """A turn of the questions. answers: to the earlier turns, by question."""
    task = cast(InstructTask, context.task)
    longest = context.config["task"]["answer_tokens"]
    turn = Turn(index, [], [])
    for question in questions:
        messages = question.turns[: index + 1]
        prompt = task.conversation(messages, answers[question.id])
        room = longest
        if task.positions is not None:
            room = max(0, min(longest, task.positions - len(prompt)))
        turn.prompts.append(prompt)
        turn.rooms.append(room)
    return turn


def _answer_turn(
    context: "Context",
    questions: Sequence[Question],
    turn: Turn,
    path: Path,
    about: Mapping[str, Any],
) -> list[str]:
    """The answers to a turn, by batches that are saved as they come. path: of all
    turns' answers. about: what defines the answers, whatever the turn."""
    from runs.training.decode import decode_missing

    number = turn.index + 1
    phase = f"answering {about['bench']}"
    if BENCHES[about["bench"]] > 1:
        phase += f" turn {number}"
    header = {**about, "turn": number, "prompts": hash_of(turn.prompts)[:16]}
    # named by its settings, so that other settings leave these answers alone
    name = f"{path.stem}_turn{number}_{hash_of(header)[:8]}.jsonl"

    def answer_batch(indices: Sequence[int]) -> list[dict[str, str]]:
        texts = _sample(
            context,
            turn.index,
            [questions[index] for index in indices],
            [turn.prompts[index] for index in indices],
            [turn.rooms[index] for index in indices],
        )
        return [{"text": text} for text in texts]

    batches = _batches(questions, turn.prompts, about["batch"])
    saved = decode_missing(
        context, path.with_name(name), header, batches, answer_batch, phase
    )
    return [saved[index]["text"] for index in range(len(questions))]


def _batches(
    questions: Sequence[Question], prompts: Sequence[list[int]], size: int
) -> list[list[int]]:
    """The indices of questions in batches of one temperature each, by length, since
    prompts are padded to the longest of their batch."""
    by_temperature = defaultdict[float, list[int]](list)
    for index, question in enumerate(questions):
        by_temperature[temperature(question.category)].append(index)
    batches = []
    for degree in sorted(by_temperature):
        indices = sorted(by_temperature[degree], key=lambda index: len(prompts[index]))
        for start in range(0, len(indices), size):
            batches.append(indices[start : start + size])
    return batches


def _sample(
    context: "Context",
    turn: int,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    rooms: Sequence[int],
) -> list[str]:
    """The answers to a turn (from 0) of questions of one temperature, by transformers.
    rooms: the tokens that each may have. The random numbers are those of the run's
    seed, the turn and the first question."""
    import torch

    from tasks.beam import left_padded  # imports torch

    # a prompt that fills the model's positions has no answer
    prompts_with_room = [ids for ids, room in zip(prompts, rooms, strict=True) if room]
    if not prompts_with_room:
        return [""] * len(prompts)
    model, task = context.raw_model, cast(InstructTask, context.task)
    device = context.accelerator.device
    settings = context.config["task"]
    degree = temperature(questions[0].category)
    # In place of the model's own, which would fill in what this one leaves out
    model.generation_config = _generation_config(task, settings, degree, max(rooms))
    if device.type == "cuda" and settings["top_p"] < 1:
        torch.set_deterministic_debug_mode("warn")  # it adds chances up in any order
    draw = hash_of([context.config["seed"], turn, questions[0].id])
    torch.manual_seed(int(draw[:16], 16) >> 1)
    batch, mask = left_padded(prompts_with_room, device)
    with torch.no_grad():
        ids = model.generate(
            input_ids=batch, attention_mask=mask, tokenizer=task.tokenizer
        )
    new_ids = iter(ids[:, batch.shape[1] :].tolist())
    texts = []
    for room in rooms:
        texts.append(text_of(task, next(new_ids)[:room]) if room else "")
    return texts


def _generation_config(
    task: InstructTask, settings: TaskConfig, degree: float, tokens: int
) -> "GenerationConfig":
    """The configuration of `generate` for questions of one temperature. tokens: the
    longest answer."""
    from transformers import GenerationConfig

    sampling = {}
    if degree > 0:
        sampling = {
            "temperature": degree,
            "top_p": settings["top_p"],
            "top_k": settings["top_k"] or 0,
        }
    end = task.tokenizer.eos_token_id
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=degree > 0,
        eos_token_id=end,
        pad_token_id=end,
        stop_strings=task.template.stop,
        **sampling,
    )


def _generate_settings(
    context: "Context", questions: Sequence[Question]
) -> dict[str, dict[str, Any]]:
    """What `generate` really uses at each temperature, after the library's own
    merge."""
    from tasks.generation import merged_settings

    model, task = context.raw_model, cast(InstructTask, context.task)
    settings = context.config["task"]
    config_of_model = model.generation_config
    prompt = [task.tokenizer.eos_token_id]
    merged = {}
    for degree in sorted({temperature(question.category) for question in questions}):
        model.generation_config = _generation_config(
            task, settings, degree, settings["answer_tokens"]
        )
        merged[f"{degree:g}"] = merged_settings(model, prompt)
    model.generation_config = config_of_model
    return merged


def text_of(task: InstructTask, ids: list[int]) -> str:
    """An answer up to its end token, or to where it continues with an instruction."""
    end = [*ids, task.tokenizer.eos_token_id].index(task.tokenizer.eos_token_id)
    text: str = task.tokenizer.decode(ids[:end], skip_special_tokens=True)
    if task.template.stop:
        text = text.partition(task.template.stop)[0]
    return text.strip()


if __name__ == "__main__":
    entry_point(main)
