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
#: The version of how answers are drawn: answers of another version are not reused.
SAMPLING_VERSION = 2


@dataclass(frozen=True)
class BenchSettings(RecordSettings):
    """The settings that `vera-bench judge` also has. Those that are not typed are as in
    the run's configuration."""

    bench: str | None = setting(None, "mt_bench or vicuna_bench", "task.bench")
    mt_bench_dir: str | None = setting(
        None, "a copy of FastChat's llm_judge/data", "task.mt_bench_dir"
    )


@dataclass(frozen=True)
class Settings(BenchSettings):
    """How answers are sampled. Settings that are not typed are as in the run's
    configuration."""

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
    """A function that shows each event of a run in the line that begins with `head`."""
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
    """The record's configuration with the settings that the command line gives. Raises
    UserError for a value that the task does not take."""
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
    """The file of a run's answers to a bench. run: the id."""
    return run_folder(output, run) / f"{bench}.jsonl"


@dataclass(frozen=True)
class Turn:
    """One turn of the conversations, for all questions.

    Attributes:
        index: from 0.
        prompts: the token ids of each question's conversation so far.
        token_limits: how many tokens each answer may have.
    """

    index: int
    prompts: list[list[int]]
    token_limits: list[int]


def answer(record: Record, config: Configuration, report: Report) -> tuple[Path, int]:
    """Answers every question without an answer, and writes the file of all answers.

    Args:
        record: The run's record.
        config: The run's configuration with the settings of the command line.
        report: Is called with each event of the progress.

    Returns:
        The file, and how many answers were cut short or left empty because the model
        has no more positions.

    Raises:
        UserError: Where the prompt's template or the training rows have changed since
            the run.
    """
    from runs.training.decode import hash_of_trained

    settings = config["task"]
    bench = settings["bench"]
    questions = read_questions(bench_folder(settings), bench)
    path = answers_path(config["output"], record["id"], bench)
    _check_prompts(record, settings)
    context = restore({**record, "config": config}, config["output"], report=report)
    answer_settings = {
        "run": record["id"],
        "weights": hash_of_trained(context),
        "bench": bench,
        "sampling": SAMPLING_VERSION,
        "answer_tokens": settings["answer_tokens"],
        "top_p": settings["top_p"],
        "top_k": settings["top_k"],
        "batch": min(config["eval_batch"] or LARGEST_BATCH, LARGEST_BATCH),
    }
    generate_settings = _generate_settings(context, questions)
    answers = {question.id: list[str]() for question in questions}
    cut_answers = 0
    turns = BENCHES[bench]
    for index in range(turns):
        turn = _prepare_turn(context, questions, answers, index)
        for limit in turn.token_limits:
            if limit < settings["answer_tokens"]:
                cut_answers += 1
        texts = _answer_turn(context, questions, turn, path, answer_settings)
        for question, text in zip(questions, texts, strict=True):
            answers[question.id].append(text)
    write_answers(path, record["id"], answers, questions)
    content = {
        **answer_settings,
        "without_room": cut_answers,
        "generate": generate_settings,
    }
    write_atomically(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    return path, cut_answers


def _check_prompts(record: Record, settings: TaskConfig) -> None:
    """Raises UserError where the rows or their template have changed since the run,
    whose model would get other prompts than it was trained on."""
    if data_content(record["config"]["task"]) != record["data"]["content"]:
        template = settings["template"] or "the template"
        raise UserError(
            f"{template} or the rows have changed since run {record['id']}: the model "
            "was trained on other prompts"
        )


def _prepare_turn(
    context: "Context",
    questions: Sequence[Question],
    answers: Mapping[int, Sequence[str]],
    index: int,
) -> Turn:
    """The prompts of a turn, and how long their answers may be. answers: to the earlier
    turns, by the question's id. index: of the turn, from 0."""
    task = cast(InstructTask, context.task)
    answer_tokens = context.config["task"]["answer_tokens"]
    turn = Turn(index, [], [])
    for question in questions:
        messages = question.turns[: index + 1]
        prompt = task.conversation(messages, answers[question.id])
        limit = answer_tokens
        if task.positions is not None:
            free_positions = task.positions - len(prompt)
            limit = max(0, min(answer_tokens, free_positions))
        turn.prompts.append(prompt)
        turn.token_limits.append(limit)
    return turn


def _answer_turn(
    context: "Context",
    questions: Sequence[Question],
    turn: Turn,
    path: Path,
    answer_settings: Mapping[str, Any],
) -> list[str]:
    """The answers to a turn, one for each question. Each batch of them is saved as it
    comes, and saved answers are read.

    Args:
        path: The file of all turns' answers; a turn's own file lies next to it.
        answer_settings: What defines the answers, whatever the turn."""
    from runs.training.decode import decode_missing

    number = turn.index + 1
    bench = answer_settings["bench"]
    phase = f"answering {bench}"
    if BENCHES[bench] > 1:
        phase += f" turn {number}"
    prompts_hash = hash_of(turn.prompts)[:16]
    header = {**answer_settings, "turn": number, "prompts": prompts_hash}
    # named by its settings, so that other settings leave these answers alone
    name = f"{path.stem}_turn{number}_{hash_of(header)[:8]}.jsonl"

    def answer_batch(indices: Sequence[int]) -> list[dict[str, str]]:
        """The answers to the questions with these indices, as the file has them."""
        texts = _sample(
            context,
            turn.index,
            [questions[index] for index in indices],
            [turn.prompts[index] for index in indices],
            [turn.token_limits[index] for index in indices],
        )
        return [{"text": text} for text in texts]

    batches = _batches(questions, turn.prompts, answer_settings["batch"])
    saved = decode_missing(
        context, path.with_name(name), header, batches, answer_batch, phase
    )
    return [saved[index]["text"] for index in range(len(questions))]


def _batches(
    questions: Sequence[Question], prompts: Sequence[list[int]], size: int
) -> list[list[int]]:
    """The indices of questions in batches of one temperature each. Prompts of similar
    length share a batch, since they are padded to the longest."""
    indices_by_temperature = defaultdict[float, list[int]](list)
    for index, question in enumerate(questions):
        indices_by_temperature[temperature(question.category)].append(index)
    batches = []
    for _, indices in sorted(indices_by_temperature.items()):
        by_length = sorted(indices, key=lambda index: len(prompts[index]))
        for start in range(0, len(by_length), size):
            batches.append(by_length[start : start + size])
    return batches


def _sample(
    context: "Context",
    turn: int,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    token_limits: Sequence[int],
) -> list[str]:
    """The answers of the model to one batch, by transformers' `generate`. The random
    numbers come from the run's seed, the turn and the first question.

    Args:
        turn: The index of the turn, from 0.
        questions: All of one temperature.
        prompts: Their token ids.
        token_limits: How many tokens each answer may have; 0: it is empty."""
    import torch

    from tasks.beam import left_padded  # imports torch

    # a prompt that fills the model's positions has no answer
    answered_prompts = []
    for prompt, limit in zip(prompts, token_limits, strict=True):
        if limit:
            answered_prompts.append(prompt)
    if not answered_prompts:
        return [""] * len(prompts)
    model = context.raw_model
    task = cast(InstructTask, context.task)
    device = context.accelerator.device
    settings = context.config["task"]
    answer_temperature = temperature(questions[0].category)
    # in place of the model's own, which would fill in what this one leaves out
    model.generation_config = _generation_config(
        task, settings, answer_temperature, max(token_limits)
    )
    if device.type == "cuda" and settings["top_p"] < 1:
        # top_p adds chances up in any order: a mode of "error" would refuse that
        torch.set_deterministic_debug_mode("warn")
    seed_hash = hash_of([context.config["seed"], turn, questions[0].id])
    # 63 bits, as a run's own seed may have
    torch.manual_seed(int(seed_hash[:16], 16) >> 1)
    batch, mask = left_padded(answered_prompts, device)
    with torch.no_grad():
        ids = model.generate(
            input_ids=batch, attention_mask=mask, tokenizer=task.tokenizer
        )
    answers = iter(ids[:, batch.shape[1] :].tolist())  # without the prompts
    texts = []
    for limit in token_limits:
        if limit:
            # generate goes on to the largest limit of the batch
            texts.append(text_of(task, next(answers)[:limit]))
        else:
            texts.append("")
    return texts


def _generation_config(
    task: InstructTask, settings: TaskConfig, answer_temperature: float, tokens: int
) -> "GenerationConfig":
    """The configuration of `generate` for questions of one temperature. tokens: the
    longest answer."""
    from transformers import GenerationConfig

    sampling = {}
    if answer_temperature > 0:
        sampling = {
            "temperature": answer_temperature,
            "top_p": settings["top_p"],
            "top_k": settings["top_k"] or 0,  # 0: from all tokens
        }
    end_token = task.tokenizer.eos_token_id
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=answer_temperature > 0,
        eos_token_id=end_token,
        pad_token_id=end_token,
        stop_strings=task.template.stop,
        **sampling,
    )


def _generate_settings(
    context: "Context", questions: Sequence[Question]
) -> dict[str, dict[str, Any]]:
    """The settings that `generate` really uses, after the library has merged ours with
    the model's, by temperature ("0.7")."""
    from tasks.generation import merged_settings

    model = context.raw_model
    task = cast(InstructTask, context.task)
    settings = context.config["task"]
    config_of_model = model.generation_config
    prompt = [task.tokenizer.eos_token_id]  # any will do: nothing is generated
    merged = {}
    temperatures = {temperature(question.category) for question in questions}
    for answer_temperature in sorted(temperatures):
        model.generation_config = _generation_config(
            task, settings, answer_temperature, settings["answer_tokens"]
        )
        merged[f"{answer_temperature:g}"] = merged_settings(model, prompt)
    model.generation_config = config_of_model
    return merged


def text_of(task: InstructTask, ids: list[int]) -> str:
    """The text of an answer's token ids, up to its end token, or to the template's stop
    text, with which a model begins an instruction of its own."""
    end_token = task.tokenizer.eos_token_id
    # an answer that was cut short has no end token of its own
    end = [*ids, end_token].index(end_token)
    text: str = task.tokenizer.decode(ids[:end], skip_special_tokens=True)
    if task.template.stop:
        text = text.partition(task.template.stop)[0]
    return text.strip()


if __name__ == "__main__":
    entry_point(main)
