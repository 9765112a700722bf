"""MT-Bench and Vicuna-bench: questions, answer files, and judging by a model behind any OpenAI-compatible
endpoint. The command is python -m tasks.mt_bench.

Protocol and file formats are those of lm-sys/FastChat's llm_judge, single-answer grading. Questions, prompts
and reference answers are read from a copy of its data folder."""

from tasks.mt_bench.judging import Judge, JudgeError, judge, rating, read_judgments
from tasks.mt_bench.questions import (
    BENCHES,
    Question,
    data_folder,
    prompts,
    read_answers,
    read_questions,
    temperature,
    write_answers,
)
from tasks.mt_bench.scores import summary, table
