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
from typing import Any

from runs.answer import Questions, answerable, answers_path, config_of
from runs.command.errors import UserError
from runs.command.parser import entry_point, setting
from runs.evaluate import amend, read_line
from runs.record.ledger import finished_record, read_regular, record_path
from runs.record.schema import Record
from tasks.mt_bench import (
    Judge,
    data_folder,
    judged,
    read_answers,
    read_questions,
    table,
)

#: The settings that made the answers, for the record.
ANSWERING = ("answer_tokens", "top_p", "top_k", "batch", "without_room")


@dataclass(frozen=True)
class Settings(Questions):
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


def main(arguments: list[str]) -> int:
    line = read_line(arguments, Settings)
    settings, output = line.settings, line.settings.output
    records = answerable(line)
    by = Judge(settings.judge, settings.passes, max_tokens=settings.max_tokens)
    file = Path(output, "judgments", by.file().name)
    answered = [_answers(record, config_of(record, line)) for record in records]
    how = {
        key: getattr(settings, key)
        for key in ("base_url", "concurrency", "retries", "timeout")
    }
    outcome, summaries = judged([system for system, _ in answered], by, file, how)
    print(outcome.report(file))
    rows, gone = list[dict[str, Any]](), False
    for record, (_, answering), scored in zip(
        records, answered, summaries, strict=True
    ):
        entry = scored | {"answering": answering}
        rows.append({"model": f"{record['label']['row']} ({record['id']})", **entry})
        # A part of the scores is no result. Judging takes hours, in which a record may
        # have been set aside
        scores = partial(_with_scores, entry=entry)
        if entry["judged"] == entry["n"] and not amend(output, record["id"], scores):
            print(
                f"run {record['id']}: {output}/records has no record of it, and the scores enter none"
            )
            gone = True
    print(table(rows))
    return 1 if outcome.failed or gone else 0


def _with_scores(record: Record, entry: dict[str, Any]) -> Record:
    """A record's scores now, with a judge's for its earlier ones; of this bench's other
    answers none."""
    others = [
        judged
        for judged in record.get("judged", [])
        if judged["bench"] != entry["bench"]
        or (judged["answers"] == entry["answers"] and judged["judge"] != entry["judge"])
    ]
    return {"judged": [*others, entry]}


def _answers(
    record: Record, config: dict[str, Any]
) -> tuple[tuple[Path, str, dict[int, list[str]]], Record]:
    """The bench's data folder, the bench and a run's answers; and the settings that
    made them. Raises UserError, before anything is paid for, where there are none, or
    no record here for the scores."""
    bench, folder, run = (
        config["task"]["bench"],
        data_folder(config["task"]),
        record["id"],
    )
    path = answers_path(config["output"], run, bench)
    try:
        about = json.loads(read_regular(path.with_suffix(".json")))
        answering = {key: about[key] for key in ANSWERING}
        # answers from before 2026-12-01 do not say what generate used
        answering["generate"] = about.get("generate")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no answers yet ({error}). First: vera-bench answer {run}"
        ) from None
    if not finished_record(config["output"], run):
        raise UserError(
            f"{record_path(config['output'], run)}: no record. Copy the published one here"
        )
    return (
        folder,
        bench,
        read_answers(path, read_questions(folder, bench), run)[1],
    ), answering


if __name__ == "__main__":
    entry_point(main)
