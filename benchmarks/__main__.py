"""Measures the cost of VeRA beside peft and the base model, and that of commands:
ratios over interleaved rounds.

python -m benchmarks training
    steps of RoBERTa-base, and memory: under 5 minutes on 2 cores
python -m benchmarks serving
    64 adapters in one batch (full=true: 10,000 resident, more lengths)
python -m benchmarks decoding
    beam search for E2E beside transformers' own, GPT-2 small (full=true:
    medium, too)
python -m benchmarks contention
    a run beside busy processes, by how OpenMP's threads wait: five minutes
    (full=true: three rounds)
python -m benchmarks reward
    steps of training by reward beside TRL's GRPOTrainer, with the embedded
    SmolLM2-135M (full=true: more sizes)
python -m benchmarks runs number=500
    so many tiny runs in one command: what each costs beside its training, and
    the memory of the command
python -m benchmarks commands
    CPU seconds and memory of table, plan, findings and report on the published
    records, and with 30,000 others: five minutes (full=true: 100,000, too)

Weights are random except for reward, since time does not depend on them. It computes
in float32 on a CPU and with bfloat16 autocast on a GPU, without dropout.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.commands import commands
from benchmarks.many_runs import many_runs
from benchmarks.reward import reward
from benchmarks.serving import decoding, serving
from benchmarks.training import DEVICE, Row, contention, markdown, training
from runs.command.advice import require_known
from runs.command.parser import CommonSettings, entry_point, read_command_line, setting
from runs.record.files import write_atomically
from runs.record.keys import Count
from runs.run.provenance import code_state, describe_device, versions


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings of the command."""

    full: bool = setting(
        False, "every model, length and variant, which takes longer than five minutes"
    )
    number: Count = setting(100, "how many runs the part `runs` does")
    output: str = setting("outputs", "the tables go to bench/ in this folder")


#: What each part measures: a function that returns the rows of its tables.
PARTS: dict[str, Callable[[Settings], list[Row]]] = {
    "training": lambda settings: training(settings.full),
    "serving": lambda settings: serving(settings.full),
    "decoding": lambda settings: decoding(settings.full),
    "contention": lambda settings: contention(settings.full),
    "reward": lambda settings: reward(settings.full),
    "runs": lambda settings: many_runs(settings.number),
    "commands": lambda settings: commands(settings.full),
}


def main(arguments: list[str]) -> int:
    """Measures a part (training by default), and writes its rows and tables to files.
    Returns the exit code."""
    line = read_command_line(arguments, Settings, positional="[PART]")
    name = require_known("part", "".join(line.positional) or "training", PARTS)
    rows = PARTS[name](line.settings)
    origin = {
        "machine": describe_device(torch.device(DEVICE)),
        "threads": torch.get_num_threads(),
    }
    origin |= {
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "code": code_state(),
    }
    folder = Path(line.settings.output) / "bench"
    numbers = json.dumps({**origin, "rows": rows}, indent=1)
    tables = markdown(rows)
    write_atomically(folder / f"{name}.json", f"{numbers}\n")
    write_atomically(folder / f"{name}.md", f"{tables}\n")
    print(f"{tables}\n\nThe numbers behind it: {folder / name}.json")
    return 0


if __name__ == "__main__":
    entry_point(main)
