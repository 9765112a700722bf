"""MT-Bench and Vicuna-bench by FastChat's protocol and file formats: see __main__.py,
the command."""

from tasks.mt_bench.judging import (
    Judge,
    JudgeError,
    Judgment,
    Outcome,
    rating,
    read_judgments,
    request_judgments,
)
from tasks.mt_bench.questions import (
    BENCHES,
    INSTEAD,
    Question,
    bench_folder,
    prompts,
    read_answers,
    read_questions,
    temperature,
    write_answers,
)
from tasks.mt_bench.scores import Summary, bench_summary, bench_table, judge_systems
