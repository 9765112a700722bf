"""MT-Bench and Vicuna-bench: questions, answer files, and a judge behind any
OpenAI-compatible endpoint.

    python -m tasks.mt_bench judge ANSWERS [ANSWERS ...] [--bench mt_bench] [--judge
    gpt-4] [--passes 1] python -m tasks.mt_bench show ANSWERS [ANSWERS ...]

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

from tasks.base import DataError
from tasks.mt_bench.judging import Judge
from tasks.mt_bench.questions import BENCHES, data_folder, read_answers, read_questions
from tasks.mt_bench.scores import judged, table


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tasks.mt_bench", description=__doc__, formatter_class=form
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
        help="of an OpenAI-compatible endpoint; without it, OPENAI_BASE_URL, or OpenAI's own",
    )
    saved = "where judgments are saved; without it, outputs/judgments/JUDGE.jsonl"
    add("--judgments", type=Path, metavar="FILE", help=saved)
    add("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_intermixed_args(arguments)
    file, judging = options.judgments, options.action == "judge"
    try:
        by = Judge(options.judge, options.passes, max_tokens=options.max_tokens)
        file = file or by.file()
        folder = data_folder({"mt_bench_dir": options.data})
        questions = read_questions(folder, options.bench)
        models = [(path, *read_answers(path, questions)) for path in options.answers]
        systems = [(folder, options.bench, answers) for _, _, answers in models]
        how = {
            name: getattr(options, name)
            for name in ("base_url", "concurrency", "retries", "timeout")
        }
        outcome, scores = judged(systems, by, file, how if judging else None)
        names = [{"model": model, "file": str(path)} for path, model, _ in models]
        summaries = [name | of for name, of in zip(names, scores, strict=True)]
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        later = "the same command goes on from there"
        print(f"stopped. What was judged is saved in {file}; {later}", file=sys.stderr)
        return 130
    failed = outcome.failed.total()
    if options.json:
        reasons = {"reasons": dict(outcome.failed)}
        counts = {
            "asked": outcome.asked,
            "cached": outcome.cached,
            "failed": failed,
        } | reasons
        print(
            json.dumps(({"judging": counts} if judging else {}) | {"models": summaries})
        )
    else:
        print(*([outcome.report(file)] if judging else []), table(summaries), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
