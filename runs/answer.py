"""Asks a finished run's model the questions of MT-Bench or Vicuna-bench, for runs.judge.

python -m runs.answer RUN [RUN ...]                                a run id (or its beginning), as in
                                                                   outputs/records
python -m runs.answer experiment=table4_llama2_7b                  every finished run of a preset, or of
                                                                   whatever else names runs
python -m runs.answer RUN task.mt_bench_dir=/where/llm_judge/data  a local copy of FastChat's data folder
python -m runs.answer RUN task.bench=vicuna_bench task.answer_tokens=512 task.top_p=0.9 task.top_k=50 \\
                           eval_batch=8

Answers are saved as they come; after a kill the same command continues. They lie in
outputs/runs/RUN/BENCH.jsonl, in FastChat's format; BENCH.json has the settings that made them. Each answer
has random numbers of its own (by question, turn and the run's seed), so the other answers of its batch change
it only by rounding, in half precision.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from runs.alone import alone, run_lock
from runs.command import COMPOSING, Line, OfRecords, S, entry_point, open_ledger, read, setting
from runs.config import only_runs
from runs.errors import UserError
from runs.evaluate import find, restore
from runs.identity import data_content, run_id
from runs.record import FINISHED, Record, run_folder, write_atomically
from tasks.instruct import InstructTask, check_answers
from tasks.mt_bench import BENCHES, Question, data_folder, read_questions, temperature, write_answers

if TYPE_CHECKING:
    from runs.training.context import Context

DEVICES = ("auto", "cpu", "cuda", "mps")
#: Questions of a batch, at most: an answer is many times as long as a row of the evaluation.
LARGEST_BATCH = 16


@dataclass(frozen=True)
class Questions(OfRecords):
    """Settings that runs.judge has, too. null: as in the run's configuration."""

    bench: str | None = setting(None, "mt_bench or vicuna_bench", "task.bench")
    mt_bench_dir: str | None = setting(None, "a copy of FastChat's llm_judge/data", "task.mt_bench_dir")


@dataclass(frozen=True)
class Settings(Questions):
    """And how answers are sampled. null: as in the run's configuration."""

    answer_tokens: int | None = setting(None, "the longest answer", "task.answer_tokens")
    top_p: float | None = setting(None, "tokens are drawn from this share of the chances", "task.top_p")
    top_k: int | None = setting(None, "and from so many; null here: from all", "task.top_k")
    eval_batch: int | None = setting(None, f"questions answered at once, at most {LARGEST_BATCH}")
    device: str | None = setting(None, ", ".join(DEVICES))


def read_line(arguments: list[str], settings: type[S]) -> Line[S]:
    """The command line of answer or judge. Raises UserError where it names no run."""
    runs = "the runs, as for python -m runs, in place of ids"
    line = read(arguments, settings, "[RUN ...]", overrides=runs, options=COMPOSING)
    if not (line.names or line.overrides or line.options):
        raise UserError("which runs? Name their ids, or what composes them, such as experiment=NAME (--help)")
    return line


def main(arguments: list[str]) -> int:
    from runs.sweep.display import Display, heads

    line = read_line(arguments, Settings)
    if "LOCAL_RANK" in os.environ:
        raise UserError("answers are made by one process: python -m runs.answer, without torchrun")
    records = records_of(line)
    configs = [config_of(record, line) for record in records]
    for config in configs:  # every question file before the first model
        read_questions(data_folder(config["task"]), config["task"]["bench"])
    display, names = Display(), [f"{r['label']['row']} seed {r['cell']['seed']}" for r in records]
    for record, config, name, head in zip(records, configs, names, heads(names), strict=True):
        bench = config["task"]["bench"]
        lock = run_lock(config["output"], f"{record['id']}-{bench}")
        with alone(lock, f"{bench} of {name}"):
            path, short = answer(record, config, partial(display.show_one, head))
        note = f" ({short} cut short or left empty: the model has no more positions)" if short else ""
        display.line(f"{head}  answers: {path}{note}")
    return 0


def records_of(line: Line[Any]) -> list[Record]:
    """The finished records that a command line names: by run ids, or by whatever composes runs.

    Raises UserError where there is none, or for a task other than instruction tuning.
    """
    output = line.settings.output
    if line.names:
        records = [find(name, output) for name in line.names]
    else:
        runs = only_runs([*line.overrides, f"output={output}"], line.config_dir)
        ledger = open_ledger(output, published=False).records
        records = []
        for run in runs:
            record = ledger.get(run_id(run) or "")
            if record is None or record["status"] not in FINISHED:
                print(f"left out: {run.label} has not finished here", flush=True)
            elif record["status"] == "done":
                records.append(record)
        if not records:
            raise UserError(
                f"none of these {len(runs)} runs has finished in {output}/records. First: python -m runs"
                f" {' '.join([*line.options, *line.overrides])}"
            )
    for record in records:
        if record["config"]["task"].get("family") != "instruct":
            raise UserError(
                f"run {record['id']} is on {record['label']['task']}: questions are for instruction tuning,"
                " such as alpaca"
            )
    return records


def config_of(record: Record, line: Line[Any]) -> dict[str, Any]:
    """The record's configuration, with the command's own settings in it. Raises UserError or DataError for
    values that cannot be."""
    config: dict[str, Any] = {**record["config"], "task": {**record["config"]["task"]}}
    config["output"] = line.settings.output
    for key, value in line.given.items():
        part = config["task"] if key.startswith("task.") else config
        if (name := key.removeprefix("task.")) in part:
            part[name] = value
    check_answers(config["task"])
    if not (config["eval_batch"] or 0) > 0:
        raise UserError(f"eval_batch={config['eval_batch']}: should be at least 1")
    if config["device"] not in DEVICES:
        raise UserError(f"device={config['device']}: should be one of {', '.join(DEVICES)}")
    return config


def answers_path(output: str, run: str, bench: str) -> Path:
    """Where a run's answers lie."""
    return run_folder(output, run) / f"{bench}.jsonl"


def answer(
    record: Record, config: dict[str, Any], report: Callable[[dict[str, Any]], None]
) -> tuple[Path, int]:
    """Answers every question that has no answer yet. Returns the file's path, and how many answers the
    model's positions cut short.

    Raises UserError where the prompt's template or the training rows have changed since the run."""
    from runs.training.decode import weights, write_down

    settings, size = config["task"], min(config["eval_batch"], LARGEST_BATCH)
    bench, longest = settings["bench"], settings["answer_tokens"]
    questions = read_questions(data_folder(settings), bench)
    path = answers_path(config["output"], record["id"], bench)
    if data_content(record["config"]["task"]) != record["data"]["content"]:
        raise UserError(
            f"{settings['template'] or 'the template'} or the rows have changed since run {record['id']}: the"
            " model was trained on other prompts"
        )
    report({"phase": "loading"})
    context = restore({**record, "config": config}, config["output"], report=report)
    task = cast(InstructTask, context.task)
    about = {"run": record["id"], "weights": weights(context), "bench": bench}
    about |= {key: settings[key] for key in ("answer_tokens", "top_p", "top_k")} | {"batch": size}
    answers, short = [list[str]() for _ in questions], 0  # of each question, by turn
    for turn in range(BENCHES[bench]):
        prompts = [
            task.conversation(question.turns[: turn + 1], before)
            for question, before in zip(questions, answers, strict=True)
        ]
        short += sum(_room(task, ids, longest) < longest for ids in prompts)
        # By temperature, since greedy answers need no random numbers, and by length, since prompts are padded
        # to the longest
        order = sorted(
            range(len(questions)), key=lambda i: (temperature(questions[i].category), len(prompts[i]))
        )
        key = {**about, "turn": turn + 1, "prompts": _hash(prompts)}
        texts = write_down(
            context,
            # Named by its settings: other settings leave these answers alone
            path.with_name(f"{path.stem}_turn{turn + 1}_{_hash(key)[:8]}.jsonl"),
            key,
            [order[start : start + size] for start in range(0, len(order), size)],
            lambda rows, turn=turn, prompts=prompts: [  # type: ignore[misc]
                {"text": text}
                for text in _sample(context, [(questions[i], turn, prompts[i]) for i in rows], settings)
            ],
            ["text"],
            f"answering {bench}" + (f" turn {turn + 1}" if BENCHES[bench] > 1 else ""),
        )
        for i, turns in enumerate(answers):
            turns.append(texts[i]["text"])
    if context.accelerator.is_main_process:
        by_id = {question.id: turns for question, turns in zip(questions, answers, strict=True)}
        write_answers(path, record["id"], by_id, questions)
        write_atomically(
            path.with_suffix(".json"), json.dumps({**about, "without_room": short}, indent=1) + "\n"
        )
    return path, short


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# --- sampling


def uniforms(question: int, turn: int, seed: int, count: int) -> Any:
    """The random numbers of an answer, in [0, 1): one for each token, whatever it is batched with."""
    return np.random.Generator(np.random.Philox(key=[seed, 100 * question + turn])).random(count)


def draw(logits: Any, temperatures: Any, top_p: float, top_k: int | None, numbers: Any) -> Any:
    """A token of each row: the likeliest at temperature 0, else the one at the row's random number in the
    cumulative distribution.

    logits (rows, vocabulary); temperatures and numbers (rows,) in float64. top_p and top_k leave the
    likeliest tokens."""
    import torch

    greedy = logits.argmax(-1)
    if not temperatures.any():
        return greedy
    chances, tokens = (logits.double() / temperatures.clamp(min=1e-6)[:, None]).softmax(-1), None
    if top_p < 1 or top_k is not None:
        chances, tokens = chances.sort(dim=-1, descending=True, stable=True)
        left_out = _running_sum(chances) - chances >= top_p
        left_out[:, top_k:] |= top_k is not None
        chances = chances.masked_fill(left_out, 0.0)
    reached = _running_sum(chances)
    index = (reached <= numbers[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
    drawn = index if tokens is None else tokens.gather(-1, index)
    return torch.where(temperatures == 0, greedy, drawn[:, 0])


def _running_sum(values: Any) -> Any:
    """Along the last axis. CUDA has no deterministic kernel for it, and a run allows no other."""
    return values.cpu().cumsum(-1).to(values.device) if values.is_cuda else values.cumsum(-1)


def _sample(
    context: "Context", rows: Sequence[tuple[Question, int, list[int]]], settings: Mapping[str, Any]
) -> list[str]:
    """The answers to rows of (question, turn from 0, prompt)."""
    import torch
    from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

    from tasks.beam import left_padded  # imports torch

    model, task = context.raw_model, cast(InstructTask, context.task)
    device, seed = context.accelerator.device, context.config["seed"]
    end, stop = task.tokenizer.eos_token_id, task.template.stop
    rooms = [_room(task, ids, settings["answer_tokens"]) for _, _, ids in rows]
    if not all(rooms):  # a prompt that fills the model's positions has no answer, and shortens none beside it
        others = [row for row, room in zip(rows, rooms, strict=True) if room]
        answers = iter(_sample(context, others, settings) if others else [])
        return [next(answers) if room else "" for room in rooms]
    longest, count = max(len(ids) for _, _, ids in rows), max(rooms)
    numbers = np.stack([uniforms(question.id, turn, seed, count) for question, turn, _ in rows])
    float64 = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    degrees = [temperature(question.category) for question, _, _ in rows]
    temperatures = torch.tensor(degrees, dtype=torch.float64, device=float64)

    class Draw(LogitsProcessor):
        """Draws a token of each row and leaves no other, so that the greedy search takes it."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            step = torch.from_numpy(numbers[:, input_ids.shape[1] - longest]).to(float64)
            tokens = draw(
                scores.float().to(float64), temperatures, settings["top_p"], settings["top_k"], step
            ).to(device)
            return torch.full_like(scores, -math.inf).scatter_(1, tokens[:, None], 0.0)

    class RunOn(StoppingCriteria):
        """A row ends where its answer continues with an instruction, or has filled its room."""

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            tail = input_ids[:, max(longest, input_ids.shape[1] - 16) :]
            step, texts = input_ids.shape[1] - longest, task.tokenizer.batch_decode(tail)
            ended = [
                step >= room or bool(stop and stop in text) for room, text in zip(rooms, texts, strict=True)
            ]
            return torch.tensor(ended, device=input_ids.device)

    batch, mask = left_padded([ids for _, _, ids in rows], device)
    plain = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=end, pad_token_id=end)  # type: ignore[no-untyped-call]
    # Or the model's own configuration would fill in what this one leaves out
    own, model.generation_config = model.generation_config, plain
    try:
        with torch.no_grad():
            output = model.generate(
                input_ids=batch,
                attention_mask=mask,
                past_key_values=_cache(model, device),
                logits_processor=[Draw()],
                stopping_criteria=[RunOn()],
            )
    finally:
        model.generation_config = own
    return [_text(task, row[:room]) for row, room in zip(output[:, longest:].tolist(), rooms, strict=True)]


def _cache(model: Any, device: Any) -> Any:
    """A cache of keys and values in the dtype that attention computes in. A 4-bit layer returns that of its
    input, float32 after a norm: twice the memory, and a cast of all of it in each step."""
    import torch
    from transformers import DynamicCache

    class Cache(DynamicCache):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.is_autocast_enabled(device.type):
                dtype = torch.get_autocast_dtype(device.type)
                key_states, value_states = key_states.to(dtype), value_states.to(dtype)
            return super().update(key_states, value_states, *args, **kwargs)

    return Cache(config=model.config)


def _room(task: InstructTask, prompt: Sequence[int], most: int) -> int:
    """Tokens that an answer may have: `most`, or what the model's positions leave after the prompt."""
    return most if task.positions is None else max(0, min(most, task.positions - len(prompt)))


def _text(task: InstructTask, ids: list[int]) -> str:
    """An answer up to its end token, or to where it continues with an instruction."""
    end = task.tokenizer.eos_token_id
    text: str = task.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True)
    return text.partition(task.template.stop)[0].strip() if task.template.stop else text.strip()


if __name__ == "__main__":
    entry_point(main)
