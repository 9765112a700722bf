"""MT-Bench and Vicuna-bench: questions, answer files, and a judge behind any
OpenAI-compatible endpoint.

    python -m tasks.mt_bench judge ANSWERS [ANSWERS ...]
    python -m tasks.mt_bench judge ANSWERS --bench vicuna_bench --judge gpt-4
    python -m tasks.mt_bench show ANSWERS [ANSWERS ...]

The key is read from OPENAI_API_KEY, the endpoint from --base-url or OPENAI_BASE_URL.
ANSWERS are files in FastChat's format. Each judgment is saved at once under a hash of
its request, so the same command later pays only for what is missing. show sends no
request. Exit codes: 0; 1 if judgments failed; 2 for an error.

Protocol and file formats are those of lm-sys/FastChat's llm_judge, single-answer
grading. Questions, prompts and reference answers are read from a copy of its data
folder."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tasks.base import DataError
from tasks.mt_bench.judging import Judge, Outcome
from tasks.mt_bench.questions import BENCHES, bench_folder, read_answers, read_questions
from tasks.mt_bench.scores import bench_table, judge_systems

#: The options of request_judgments that the command has, by the same names.
OPTIONS = ("base_url", "concurrency", "retries", "timeout")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tasks.mt_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("action", choices=["judge", "show"])
    add("answers", type=Path, nargs="+")
    add(
        "--data",
        metavar="FOLDER",
        help="FastChat's fastchat/llm_judge/data; without it, from the hub",
    )
    add("--bench", choices=list(BENCHES), default="mt_bench")
    add("--judge", default="gpt-4", help="the judge's name at the endpoint")
    add("--passes", type=int, default=1, help="how often everything is judged")
    add("--max-tokens", type=int, default=2048, help="of a judge's reply")
    add("--concurrency", type=int, default=8, help="prompts at the judge at a time")
    add(
        "--retries",
        type=int,
        default=10,
        help="of a prompt that fails, before it is left for the next time",
    )
    add("--timeout", type=float, default=300.0, help="seconds that one try may take")
    add(
        "--base-url",
        help="of an OpenAI-compatible endpoint; without it, OPENAI_BASE_URL, "
        "or OpenAI's own",
    )
    add(
        "--judgments",
        type=Path,
        metavar="FILE",
        help="where judgments are saved; without it, outputs/judgments/JUDGE.jsonl",
    )
    add("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def main(arguments: list[str]) -> int:
    """Runs the command, and returns its exit code."""
    options = _parser().parse_intermixed_args(arguments)
    file = options.judgments
    try:
        judge = Judge(options.judge, options.passes, max_tokens=options.max_tokens)
        file = file or judge.file()
        outcome, summaries = _score_answer_files(options, judge, file)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"stopped. What was judged is saved in {file}; the same command resumes",
            file=sys.stderr,
        )
        return 130
    sends_requests = options.action == "judge"
    if options.json:
        result: dict[str, Any] = {}
        if sends_requests:
            result["judging"] = _counts(outcome)
        print(json.dumps(result | {"models": summaries}))
    else:
        if sends_requests:
            print(outcome.report(file))
        print(bench_table(summaries))
    return 1 if outcome.failed else 0


def _score_answer_files(
    options: argparse.Namespace, judge: Judge, file: Path
) -> tuple[Outcome, list[dict[str, Any]]]:
    """How the judging went, and the summary of each answer file, with the model's name and
    the file. The action judge requests the judgments that are missing; show only reads
    the saved ones.

    file: of the judgments."""
    folder = bench_folder({"mt_bench_dir": options.data})
    questions = read_questions(folder, options.bench)
    names, systems = [], []
    for path in options.answers:
        model, answers = read_answers(path, questions)
        names.append({"model": model, "file": str(path)})
        systems.append((folder, options.bench, answers))
    request_options = None
    if options.action == "judge":
        request_options = {name: getattr(options, name) for name in OPTIONS}
    outcome, summaries = judge_systems(systems, judge, file, request_options)
    named_summaries: list[dict[str, Any]] = []
    for name, summary in zip(names, summaries, strict=True):
        named_summaries.append({**name, **summary})
    return outcome, named_summaries


def _counts(outcome: Outcome) -> dict[str, Any]:
    """How the judging went, for --json."""
    return {
        "asked": outcome.asked,
        "cached": outcome.cached,
        "failed": outcome.failed.total(),
        "reasons": dict(outcome.failed),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
