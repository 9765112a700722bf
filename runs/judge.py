"""Has a judge score the answers of finished runs, and writes the scores into their
records (table 4). The answers come from `vera-bench answer`.

vera-bench judge RUN [RUN ...]
    RUN is a run id, or its beginning, as in outputs/records
vera-bench judge experiment=table4_llama2_7b
    every finished run of a preset, or of other overrides
vera-bench judge RUN judge=gpt-4 passes=3
    another judge, which scores every answer three times
vera-bench judge RUN base_url=http://localhost:8000/v1 judge=my-model
    any OpenAI-compatible endpoint

The key is read from OPENAI_API_KEY. Each judgment is saved as it comes, in
outputs/judgments/JUDGE.jsonl. If the command is killed, the same command continues,
and you pay for no judgment twice. tasks/mt_bench judges answers from anywhere.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from runs.answer import (
    BenchSettings,
    answerable_records,
    answers_path,
    config_with_settings,
)
from runs.command.errors import UserError
from runs.command.parser import entry_point, setting
from runs.evaluate import amend, read_line
from runs.record.configuration import Configuration
from runs.record.ledger import finished_record, read_regular, record_path
from runs.record.schema import AddedKeys, Judgement, Record
from tasks.mt_bench import (
    Judge,
    Summary,
    bench_folder,
    bench_table,
    judge_systems,
    read_answers,
    read_questions,
)
from tasks.mt_bench.scores import System

#: What a record keeps of BENCH.json, besides `generate`: the settings that made the
#: answers, and how many answers were cut short (without_room).
ANSWER_SETTINGS = ("answer_tokens", "top_p", "top_k", "batch", "without_room")


@dataclass(frozen=True)
class Settings(BenchSettings):
    """Who judges, and how."""

    judge: str = setting("gpt-4", "the model that judges")
    base_url: str | None = setting(
        None, "an OpenAI-compatible endpoint, in place of OpenAI's"
    )
    passes: int = setting(1, "how often everything is judged")
    max_tokens: int = setting(2048, "the longest judgment")
    concurrency: int = setting(8, "how many are asked for at once")
    retries: int = setting(10, "of a request that fails")
    timeout: float = setting(300.0, "seconds, for one try")


class AnsweredBench(NamedTuple):
    """A run's answers to a bench.

    Attributes:
        system: the folder of the questions, the bench, and the answers.
        settings: how the answers were made.
    """

    system: System
    settings: dict[str, Any]


def main(arguments: list[str]) -> int:
    line = read_line(arguments, Settings)
    settings = line.settings
    output = line.settings.output
    records = answerable_records(line)
    judge = Judge(settings.judge, settings.passes, max_tokens=settings.max_tokens)
    file = Path(output, "judgments", judge.file().name)
    benches = []
    for record in records:
        benches.append(_answered_bench(record, config_with_settings(record, line)))
    request_options = {
        "base_url": settings.base_url,
        "concurrency": settings.concurrency,
        "retries": settings.retries,
        "timeout": settings.timeout,
    }
    systems = [bench.system for bench in benches]
    outcome, summaries = judge_systems(systems, judge, file, request_options)
    print(outcome.report(file))
    rows = list[dict[str, Any]]()
    all_entered = True
    for record, bench, summary in zip(records, benches, summaries, strict=True):
        entry = cast(Judgement, {**summary, "answering": bench.settings})
        rows.append({"model": f"{record['label']['row']} ({record['id']})", **entry})
        if not _enter_scores(record, output, summary, entry):
            all_entered = False
    print(bench_table(rows))
    return 1 if outcome.failed or not all_entered else 0


def _enter_scores(
    record: Record, output: str, summary: Summary, entry: Judgement
) -> bool:
    """Writes a judge's scores into a record, unless some answers have none yet. Returns
    False where the record is gone: judging takes hours, in which somebody may have
    archived it."""
    if summary["judged"] != summary["n"]:
        return True
    if amend(output, record["id"], partial(_with_judgement, entry=entry)):
        return True
    print(
        f"run {record['id']}: {output}/records has no record of it any "
        "more, so its scores are in no record"
    )
    return False


def _with_judgement(record: Record, entry: Judgement) -> AddedKeys:
    """A record's judgements and a new one. It replaces those by the same judge on the
    same bench, and those of earlier answers to that bench."""
    judgements = []
    for judgement in record.get("judged", []):
        is_of_another_bench = judgement["bench"] != entry["bench"]
        is_by_another_judge = judgement["judge"] != entry["judge"]
        is_of_same_answers = judgement.get("answers") == entry.get("answers")
        if is_of_another_bench or (is_by_another_judge and is_of_same_answers):
            judgements.append(judgement)
    return {"judged": [*judgements, entry]}


def _answered_bench(record: Record, config: Configuration) -> AnsweredBench:
    """A run's answers. Raises UserError, before anything is paid for, where there are
    none, or no record here for the scores."""
    run_id = record["id"]
    output = config["output"]
    bench = config["task"]["bench"]
    folder = bench_folder(config["task"])
    path = answers_path(output, run_id, bench)
    try:
        saved = json.loads(read_regular(path.with_suffix(".json")))
        settings = {key: saved[key] for key in ANSWER_SETTINGS}
        # answers from before 2026-12-01 do not say what generate used
        settings["generate"] = saved.get("generate")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no answers yet ({error}). First: vera-bench answer {run_id}"
        ) from None
    if not finished_record(output, run_id):
        raise UserError(
            f"{record_path(output, run_id)}: no record. Copy the published one here"
        )
    _, answers = read_answers(path, read_questions(folder, bench), run_id)
    return AnsweredBench((folder, bench, answers), settings)


if __name__ == "__main__":
    entry_point(main)
