"""Lets a judge score the answers of finished runs (runs.answer), and writes the scores into their records,
for table 4.

python -m runs.judge RUN [RUN ...]                     a run id (or its beginning), as in outputs/records
python -m runs.judge experiment=table4_llama2_7b       every finished run of a preset, or of any words that
                                                       name runs
python -m runs.judge RUN judge=gpt-4 passes=3          another judge; everything judged three times
python -m runs.judge RUN base_url=http://localhost:8000/v1 judge=my-model      any OpenAI-compatible endpoint

The key is read from OPENAI_API_KEY. Judgments are saved as they come, in outputs/judgments/JUDGE.jsonl: the
same command continues after a kill, and no judgment is paid for twice. python -m tasks.mt_bench judges any
other system's answers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.alone import alone, run_lock
from runs.answer import Questions, answers_path, config_of, read_line, records_of
from runs.command import entry_point, setting
from runs.errors import UserError
from runs.record import Record, finished_record, record_path, write_record
from runs.record.text import describe
from tasks.mt_bench import (
    Judge,
    JudgeError,
    data_folder,
    judge,
    prompts,
    read_answers,
    read_judgments,
    read_questions,
    summary,
    table,
)


@dataclass(frozen=True)
class Settings(Questions):
    """Who judges, and how."""

    judge: str = setting("gpt-4", "the model that judges")
    base_url: str | None = setting(None, "an OpenAI-compatible endpoint, in place of OpenAI's")
    passes: int = setting(1, "how often everything is judged")
    max_tokens: int = setting(2048, "the longest judgment")
    concurrency: int = setting(8, "how many are asked for at once")
    retries: int = setting(10, "of a request that fails")
    timeout: float = setting(300.0, "seconds, for one try")


def main(arguments: list[str]) -> int:
    line = read_line(arguments, Settings)
    settings, output = line.settings, line.settings.output
    records, gone = records_of(line), False
    here = [record_path(output, record["id"]).is_file() for record in records]  # and not published alone
    by = Judge(settings.judge, settings.passes, max_tokens=settings.max_tokens)
    file = Path(output, "judgments", by.file().name)
    answered = [_answers(record, config_of(record, line)) for record in records]
    messages = [
        message
        for bench, folder, answers in answered
        for message in prompts(folder, bench, read_questions(folder, bench), answers).values()
    ]
    keys = ("base_url", "concurrency", "retries", "timeout")
    how: dict[str, Any] = {key: getattr(settings, key) for key in keys}
    try:
        outcome = judge(messages, by, file, progress=True, **how)
    except JudgeError as error:
        raise UserError(str(error)) from None
    print(outcome.report(file))
    saved, rows = read_judgments(file), list[dict[str, Any]]()
    for before_judging, is_here, (bench, folder, answers) in zip(records, here, answered, strict=True):
        with alone(run_lock(output, before_judging["id"]), f"run {before_judging['id']}"):
            # Read again: judging takes hours, in which another judge's scores may have come
            record = finished_record(output, before_judging["id"]) if is_here else before_judging
            if record is None:
                print(f"run {before_judging['id']}: its record is gone, and gets no scores")
                gone = True
                continue
            entry = summary(folder, bench, answers, by, saved)
            entry["answering"] = _answering(output, record, bench)
            # What stays: of other benches, and of other judges that judged the same answers
            judged = [
                j for j in record.get("judged", []) if j["bench"] != bench or j["answers"] == entry["answers"]
            ]
            before = next((j for j in judged if (j["bench"], j["judge"]) == (bench, by.name)), None)
            if before and before["passes"] > by.passes:
                print(
                    f"run {record['id']}: its record has {before['passes']} passes of {by.name} already, and"
                    " keeps them"
                )
                entry = before
            if entry["judged"] == entry["n"]:  # a part of the scores is no result
                write_record(output, {**record, "judged": [*(j for j in judged if j is not before), entry]})
        rows.append({"model": f"{record['label']['row']} ({record['id']})", **entry})
    if rows:
        print(table(rows))
    return 1 if outcome.failed or gone else 0


def _answers(record: Record, config: dict[str, Any]) -> tuple[str, Path, dict[int, list[str]]]:
    """The bench, its data folder, and a run's answers. Raises UserError where there are none."""
    bench, folder = config["task"]["bench"], data_folder(config["task"])
    path = answers_path(config["output"], record["id"], bench)
    if not path.is_file():
        raise UserError(
            f"{path}: run {record['id']} has no answers yet. First: python -m runs.answer {record['id']}"
        )
    return bench, folder, read_answers(path, read_questions(folder, bench), record["id"])[1]


def _answering(output: str, record: Record, bench: str) -> dict[str, Any]:
    """The settings that made the answers. Raises UserError where their file cannot be read."""
    path = answers_path(output, record["id"], bench).with_suffix(".json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {describe(error)}. Again: python -m runs.answer {record['id']}") from None
    return {key: about[key] for key in ("answer_tokens", "top_p", "top_k", "batch", "without_room")}


if __name__ == "__main__":
    entry_point(main)
