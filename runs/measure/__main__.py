"""The measurements of figures 3, 5 and 6: from the adapters of finished runs, or by a fit that takes seconds.

python -m runs.measure magnitude [RUN ...]       how far each d and b has moved (VeRA paper, figure 3); no
                                                 RUN: every VeRA run
python -m runs.measure similarity [LORA VERA]    cosine of two runs' weight differences (figure 5); without
                                                 runs: every pair of one model, task, seed and rank
python -m runs.measure matrix_fit [seed=0]       random 10 x 10 matrices, fitted by LoRA and by VeRA (figure
                                                 6), on the CPU

A RUN is a run id (or its beginning). Each measure is a file in outputs/measures (runs/record), which the same
command replaces. Adapter files are enough: no base model or data is needed.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runs.command import OfRecords, entry_point, one_of, open_ledger, read, setting
from runs.errors import UserError, is_users
from runs.evaluate import find
from runs.measure.adapters import magnitude, similarity
from runs.measure.fit import matrix_fit
from runs.record import Record, is_trial, write_measure
from runs.record.text import describe


@dataclass(frozen=True)
class Settings(OfRecords):
    """Settings of the command."""

    seed: int = setting(0, "of the random matrices of similarity and matrix_fit")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="MEASURE [RUN ...]")
    (kind, *names), output, seed = line.names, line.settings.output, line.settings.seed
    one_of("measure", kind, ("magnitude", "similarity", "matrix_fit"))
    if kind == "magnitude" and "seed" in line.given:
        raise UserError(f"seed={seed}: magnitude draws no random numbers")
    if seed < 0:
        raise UserError(f"seed={seed}: should be at least 0")
    if kind == "matrix_fit":
        if names:
            raise UserError(f"matrix_fit measures no run: {names[0]!r} is too much")
        _report(output, matrix_fit(seed))
        return 0
    if kind == "similarity" and len(names) not in (0, 2):
        raise UserError("similarity compares two runs: python -m runs.measure similarity LORA VERA")
    records = [find(name, output) for name in names]
    chosen = [records] if kind == "similarity" else [[record] for record in records]
    jobs = chosen if names else list(_all(kind, output))
    if not jobs:
        pair = "pair of a LoRA and a VeRA run of one model, task, seed and rank"
        lacking = "finished VeRA run that kept its adapter" if kind == "magnitude" else pair
        raise UserError(f"{output}/records has no {lacking} to measure")
    done = 0
    for job in jobs:
        try:
            one, other = job[0], job[-1]
            measure = magnitude(one, output) if kind == "magnitude" else similarity(one, other, output, seed)
        except Exception as error:
            if names or not is_users(error):
                raise
            print(f"left out: {describe(error)}")  # many of all runs have kept no adapter
            continue
        _report(output, measure)
        done += 1
    if not done:
        raise UserError(f"none of {len(jobs)} could be measured")
    return 0


def _all(kind: str, output: str) -> Iterator[list[Record]]:
    """The runs of each measure: VeRA's finished runs, or LoRA's and VeRA's of the same model, task, seed and
    rank; without trials and runs with keep=none."""
    done = [r for r in open_ledger(output, published=False) if r["status"] == "done"]
    kept = [r for r in done if r["config"]["keep"] != "none" and not is_trial(r["config"])]
    vera, lora = ([r for r in kept if r["config"]["method"]["kind"] == method] for method in ("vera", "lora"))
    if kind == "magnitude":
        yield from ([run] for run in vera)
    else:
        yield from (list(pair) for pair in itertools.product(lora, vera) if _cell(pair[0]) == _cell(pair[1]))


def _cell(record: Record) -> list[Any]:
    """The values that the runs of a pair share."""
    cell, method = record["cell"], record["config"]["method"]
    content = record["data"]["content"]
    return [record["model"], cell["task"], content, cell["seed"], method["rank"], method["sites"]]


def _report(output: str, measure: Record) -> None:
    path = write_measure(output, measure)
    runs = [(run["label"], run["cell"]["seed"]) for run in measure["of"]]
    of = " and ".join(f"{label['row']} on {label['task']}, seed {seed}" for label, seed in runs)
    words = ", ".join(f"{key} {value:.3g}" for key, value in measure["summary"].items())
    print(f"{measure['kind']}{' of ' + of if of else ''}: {words} -> {path}")


if __name__ == "__main__":
    entry_point(main)
