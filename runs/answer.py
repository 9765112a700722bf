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

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import ValidationError

from runs.command.errors import UserError
from runs.command.parser import Line, OfRecords, entry_point, mistake, setting
from runs.config.schema import Task
from runs.evaluate import Report, read_line, records_of, restore
from runs.machine.locks import alone, run_lock
from runs.record.cell import hash_of
from runs.record.keys import Count
from runs.record.ledger import run_folder, write_atomically
from runs.record.schema import Record
from runs.run.identity import data_content
from tasks.instruct import InstructTask
from tasks.mt_bench import (
    BENCHES,
    Question,
    data_folder,
    read_questions,
    temperature,
    write_answers,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from runs.training.context import Context

#: Questions of a batch, at most: an answer is many times as long as a row of the
#: evaluation.
LARGEST_BATCH = 16
#: The version of how answers are drawn: those of another one are not taken up.
SAMPLING = 2


@dataclass(frozen=True)
class Questions(OfRecords):
    """Settings that `vera-bench judge` has, too. null: as in the run's configuration."""

    bench: str | None = setting(None, "mt_bench or vicuna_bench", "task.bench")
    mt_bench_dir: str | None = setting(
        None, "a copy of FastChat's llm_judge/data", "task.mt_bench_dir"
    )


@dataclass(frozen=True)
class Settings(Questions):
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
    records = answerable(line)
    configs = [config_of(record, line) for record in records]
    for config in configs:  # every question file before the first model
        read_questions(data_folder(config["task"]), config["task"]["bench"])
    display, names = (
        Display(),
        [f"{r['label']['row']} seed {r['cell']['seed']}" for r in records],
    )
    for record, config, name, head in zip(
        records, configs, names, heads(names), strict=True
    ):
        bench = config["task"]["bench"]

        def show(event: Any, head: str = head) -> None:
            display.show([(head, event)])

        with alone(
            run_lock(config["output"], f"{record['id']}-{bench}"), f"{bench} of {name}"
        ):
            path, short = answer(record, config, show)
        note = (
            f" ({short} cut short or left empty: the model has no more positions)"
            if short
            else ""
        )
        display.line(f"{head}  answers: {path}{note}")
    return 0


def answerable(line: Line[Any]) -> list[Record]:
    """The runs of `records_of`. Raises UserError for a task other than instruction
    tuning."""
    records = records_of(line)
    for record in records:
        if record["config"]["task"].get("family") != "instruct":
            other = f"run {record['id']} is on {record['label']['task']}"
            raise UserError(
                f"{other}: questions are for instruction tuning, such as alpaca"
            )
    return records


def config_of(record: Record, line: Line[Any]) -> dict[str, Any]:
    """The record's configuration with the command's own settings. Raises UserError for
    one that cannot be."""
    config: dict[str, Any] = {**record["config"], "output": line.settings.output}
    config |= {
        key: line.given[key] for key in ("eval_batch", "device") if key in line.given
    }
    config["task"] = {
        key: line.given.get(f"task.{key}", value)
        for key, value in config["task"].items()
    }
    try:
        Task.model_validate(config["task"])
    except ValidationError as error:
        raise UserError(mistake(error, within="task")) from None
    return config


def answers_path(output: str, run: str, bench: str) -> Path:
    """Where a run's answers lie."""
    return run_folder(output, run) / f"{bench}.jsonl"


def answer(record: Record, config: dict[str, Any], report: Report) -> tuple[Path, int]:
    """Answers every question without an answer. Returns the file, and how many the
    model's positions cut.

    Raises UserError where the prompt's template or the training rows have changed since
    the run."""
    from runs.training.decode import weights, write_down

    settings, size = (
        config["task"],
        min(config["eval_batch"] or LARGEST_BATCH, LARGEST_BATCH),
    )
    bench, longest = settings["bench"], settings["answer_tokens"]
    questions = read_questions(data_folder(settings), bench)
    path = answers_path(config["output"], record["id"], bench)
    if data_content(record["config"]["task"]) != record["data"]["content"]:
        words = settings["template"] or "the template"
        changed = f"{words} or the rows have changed since run {record['id']}"
        raise UserError(f"{changed}: the model was trained on other prompts")
    context = restore({**record, "config": config}, config["output"], report=report)
    task = cast(InstructTask, context.task)
    about = {
        "run": record["id"],
        "weights": weights(context),
        "bench": bench,
        "sampling": SAMPLING,
    }
    about |= {key: settings[key] for key in ("answer_tokens", "top_p", "top_k")} | {
        "batch": size
    }
    generate = _generate_settings(context, settings, questions)
    answers, short = [list[str]() for _ in questions], 0  # of each question, by turn
    for turn in range(BENCHES[bench]):
        asked = zip(questions, answers, strict=True)
        prompts = [
            task.conversation(question.turns[: turn + 1], before)
            for question, before in asked
        ]
        # What the model's positions leave after the prompt
        left = [
            longest if task.positions is None else task.positions - len(ids)
            for ids in prompts
        ]
        rooms = [max(0, min(longest, room)) for room in left]
        short += sum(room < longest for room in rooms)
        # Of one temperature, by length, since prompts are padded to the longest of
        # their batch
        degrees = [temperature(question.category) for question in questions]
        alike = [*zip(degrees, map(len, prompts), strict=True)]
        order = sorted(range(len(questions)), key=alike.__getitem__)
        groups = (
            list(of) for _, of in itertools.groupby(order, key=degrees.__getitem__)
        )
        batches = [
            group[start : start + size]
            for group in groups
            for start in range(0, len(group), size)
        ]
        key = {**about, "turn": turn + 1, "prompts": hash_of(prompts)[:16]}

        def decode(
            rows: Sequence[int], turn: int = turn, of: Any = (questions, prompts, rooms)
        ) -> Any:
            parts = ([part[row] for row in rows] for part in of)
            return [{"text": text} for text in _sample(context, turn, *parts)]

        texts = write_down(
            context,
            # Named by its settings: other settings leave these answers alone
            path.with_name(f"{path.stem}_turn{turn + 1}_{hash_of(key)[:8]}.jsonl"),
            key,
            batches,
            decode,
            f"answering {bench}" + (f" turn {turn + 1}" if BENCHES[bench] > 1 else ""),
        )
        for i, turns in enumerate(answers):
            turns.append(texts[i]["text"])
    write_answers(
        path,
        record["id"],
        {q.id: of for q, of in zip(questions, answers, strict=True)},
        questions,
    )
    write_atomically(
        path.with_suffix(".json"),
        json.dumps({**about, "without_room": short, "generate": generate}, indent=1)
        + "\n",
    )
    return path, short


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

    model, task, device = (
        context.raw_model,
        cast(InstructTask, context.task),
        context.accelerator.device,
    )
    settings, degree = context.config["task"], temperature(questions[0].category)
    asked = [ids for ids, room in zip(prompts, rooms, strict=True) if room]
    if not asked:  # a prompt that fills the model's positions has no answer
        return [""] * len(prompts)
    # In place of the model's own, which would fill in what this one leaves out
    model.generation_config = _generation_config(task, settings, degree, max(rooms))
    if device.type == "cuda" and settings["top_p"] < 1:
        torch.set_deterministic_debug_mode("warn")  # it adds chances up in any order
    torch.manual_seed(
        int(hash_of([context.config["seed"], turn, questions[0].id])[:16], 16) >> 1
    )
    batch, mask = left_padded(asked, device)
    given = {"input_ids": batch, "attention_mask": mask, "tokenizer": task.tokenizer}
    with torch.no_grad():
        written = iter(model.generate(**given)[:, batch.shape[1] :].tolist())
    return [text_of(task, next(written)[:room]) if room else "" for room in rooms]


def _generation_config(
    task: InstructTask, settings: dict[str, Any], degree: float, tokens: int
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
    context: "Context", settings: dict[str, Any], questions: Sequence[Question]
) -> dict[str, dict[str, Any]]:
    """What `generate` really uses at each temperature, after the library's own
    merge."""
    from tasks.generation import merged_settings

    model, task = context.raw_model, cast(InstructTask, context.task)
    own, tokens = model.generation_config, settings["answer_tokens"]
    merged = {}
    for degree in sorted({temperature(question.category) for question in questions}):
        model.generation_config = _generation_config(task, settings, degree, tokens)
        prompt = [task.tokenizer.eos_token_id]
        merged[f"{degree:g}"] = merged_settings(model, prompt)
    model.generation_config = own
    return merged


def text_of(task: InstructTask, ids: list[int]) -> str:
    """An answer up to its end token, or to where it continues with an instruction."""
    end, stop = task.tokenizer.eos_token_id, task.template.stop
    text: str = task.tokenizer.decode(
        ids[: [*ids, end].index(end)], skip_special_tokens=True
    )
    return (text.partition(stop)[0] if stop else text).strip()


if __name__ == "__main__":
    entry_point(main)
