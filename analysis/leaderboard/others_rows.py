"""The rows of analysis/printed/others.yaml that come from the leaderboard."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from analysis.leaderboard.board import Board, boards
from analysis.leaderboard.reader import PUBLISHED, QUESTIONS

PRINTED = PUBLISHED.with_name("others.yaml")
#: The lines of others.yaml between which the rows stand.
BEGIN = "  # the next parts: written by vera-bench table leaderboard= refresh=true\n"
END = "  # to here\n"
#: others.yaml takes sets of at least so many rows: the complete ones. The other sets hold
#: a few rows that a commit added to older ones.
FEWEST_ROWS = 38


class Experiment(NamedTuple):
    """What others.yaml says of an experiment of the leaderboard.

    row: of conf/method or printed/names.yaml. settings: what the experiment sets, as
    keys and values of YAML."""

    row: str
    settings: str = ""


#: The experiments that others.yaml has, by their names. sites: the adapted modules, qv
#: for query and value.
EXPERIMENTS = {
    "vera/llama-3.2-3B-default": Experiment("vera", "rank: 256, sites: qv"),
    "lora/llama-3.2-3B-rank32": Experiment("lora", "rank: 32, sites: qv"),
    "lora/llama-3.2-3B-rank32-dora": Experiment("dora_r32", "rank: 32, sites: qv"),
    "full-finetuning/llama-3.2-3B-lr_0.00001": Experiment("full"),
    "randlora/llama-3.2-3B-default": Experiment("randlora", "rank: 32, sites: qv"),
    "vblora/llama-3.2-3B-default": Experiment(
        "vblora", "rank: 4, sites: qv, note: a bank of 256 vectors"
    ),
    "ia3/llama-3.2-3B-lr_0.001": Experiment("ia3"),
    "ia3/llama-3.2-3B-all-attn-5k-lr0.005": Experiment("ia3", "sites: all-linear"),
    "hira/llama-3.2-3B-rank32-lr4.5e-3": Experiment("hira", "rank: 32, sites: qv"),
    "pvera/llama-3.2-3B-default": Experiment("pvera", "rank: 256, sites: qv"),
    "tinylora/llama-3.2-3B-default": Experiment(
        "tinylora", "note: its rate was not tuned"
    ),
}


def with_rows(text: str, results: pd.DataFrame) -> str:
    """The text of others.yaml, with new parts between BEGIN and END. text: of the file.
    results: of all sets."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    lines = list[str]()
    for board in boards(results):
        lines += part_lines(board)
    return before + BEGIN + "".join(lines) + END + after


def part_lines(board: Board) -> Iterator[str]:
    """The part of others.yaml on one set, as lines; no line for a set of fewer than
    FEWEST_ROWS rows."""
    if len(board.rows) < FEWEST_ROWS:
        return
    versions = ", ".join(sorted({*board.rows.transformers}))
    yield "  - columns: [gsm8k]\n"
    yield "    note: >-\n"
    yield (
        f"      {board.label}: {len(board.rows)} rows, transformers {versions},"
        f" {board.decoding} answers\n"
    )
    yield (
        f"      to GSM8K's {QUESTIONS:,} test questions. MetaMathQA, 20,000 rows seen;"
        " the loss is over question and answer.\n"
    )
    yield "    rows:\n"
    month = board.label.partition(" (")[0]
    rows = board.rows.set_index("row", drop=False)
    for name, experiment in EXPERIMENTS.items():
        if name in rows.index:
            yield others_row_text(rows.loc[name], experiment, month)


def others_row_text(result: pd.Series, experiment: Experiment, month: str) -> str:
    """The row of others.yaml of one result, which has two lines. month: when it was
    run."""
    parts = ["model: llama3_2_3b", f"row: {experiment.row}"]
    if experiment.settings:
        parts.append(experiment.settings)
    parts.append(f"params: '{result.parameters:,}'")
    parts.append(f"lr: {short_rate(result.lr)}")
    parts.append(f"memory: {result.memory_bytes / 1e9:.2f} GB")
    parts.append(f"time: '{result.seconds:,.0f} s'")
    end = f"by: in {month}, values: [{result.score:.1f}]"
    return f"    - {{{', '.join(parts)},\n       {end}}}\n"


def short_rate(rate: float) -> str:
    """A learning rate as text: 1e-4 for 0.0001, 4.5e-3 for 0.0045."""
    digits, _, exponent = f"{rate:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
