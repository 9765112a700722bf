"""MT-Bench and Vicuna-bench: questions, answer files, and judging by a model behind any OpenAI-compatible
endpoint.

    python -m tasks.mt_bench judge ANSWERS [ANSWERS ...] [--bench mt_bench] [--judge gpt-4] [--passes 1]
    python -m tasks.mt_bench show ANSWERS [ANSWERS ...]

The key is read from OPENAI_API_KEY, the endpoint from --base-url or OPENAI_BASE_URL. ANSWERS are files in
FastChat's format. Each judgment is saved at once under a hash of its request, so the same command later pays
only for what is missing. show sends no request. Exit codes: 0; 1 if some judgments failed; 2 for an error, in
one line.

Protocol and file formats are those of lm-sys/FastChat's llm_judge, single-answer grading. Questions, prompts
and reference answers are read from a copy of its data folder."""

import argparse
import json
import sys
from pathlib import Path

from tasks.base import DataError
from tasks.mt_bench.judging import Judge, JudgeError, Outcome, judge, read_judgments
from tasks.mt_bench.questions import BENCHES, data_folder, prompts, read_answers, read_questions
from tasks.mt_bench.scores import summary, table


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tasks.mt_bench", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("action", choices=["judge", "show"])
    add("answers", type=Path, nargs="+")
    add("--data", metavar="FOLDER", help="FastChat's fastchat/llm_judge/data; without it, from the hub")
    add("--bench", choices=list(BENCHES), default="mt_bench")
    add("--judge", default="gpt-4", help="the judge's name at the endpoint")
    add("--passes", type=int, default=1, help="how often everything is judged")
    add("--max-tokens", type=int, default=2048, help="of a judge's reply")
    add("--concurrency", type=int, default=8, help="prompts at the judge at a time")
    add("--retries", type=int, default=10, help="of a prompt that fails, before it is left for the next time")
    add("--timeout", type=float, default=300.0, help="seconds that one try may take")
    add("--base-url", help="of an OpenAI-compatible endpoint; without it, OPENAI_BASE_URL, or OpenAI's own")
    saved = "where judgments are saved; without it, outputs/judgments/JUDGE.jsonl"
    add("--judgments", type=Path, metavar="FILE", help=saved)
    add("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_intermixed_args(arguments)
    file = options.judgments
    try:
        by = Judge(options.judge, options.passes, max_tokens=options.max_tokens)
        file = file or by.file()
        folder = data_folder({"mt_bench_dir": options.data})
        questions = read_questions(folder, options.bench)
        models = [(path, *read_answers(path, questions)) for path in options.answers]
        outcome = Outcome()
        if options.action == "judge":
            requests = [prompts(folder, options.bench, questions, answers) for _, _, answers in models]
            messages = [message for of_model in requests for message in of_model.values()]
            how = {name: getattr(options, name) for name in ("base_url", "concurrency", "retries", "timeout")}
            outcome = judge(messages, by, file, progress=True, **how)
        saved = read_judgments(file)
        summaries = [
            {"model": model, "file": str(path)} | summary(folder, options.bench, answers, by, saved)
            for path, model, answers in models
        ]
    except (DataError, JudgeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        later = "the same command goes on from there"
        print(f"stopped. What was judged is saved in {file}; {later}", file=sys.stderr)
        return 130
    failed, judging = outcome.failed.total(), options.action == "judge"
    if options.json:
        reasons = {"reasons": dict(outcome.failed)}
        counts = {"asked": outcome.asked, "cached": outcome.cached, "failed": failed} | reasons
        print(json.dumps(({"judging": counts} if judging else {}) | {"models": summaries}))
    else:
        print(*([outcome.report(file)] if judging else []), table(summaries), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
