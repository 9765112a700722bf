"""Measures what figures 3, 5 and 6 show: from the adapters that finished runs have kept, or by a fit that
takes seconds.

python -m runs.measure magnitude [RUN ...]       how far each d and b has moved (VeRA paper, figure 3); no
                                                 RUN: every VeRA run
python -m runs.measure similarity [LORA VERA]    cosine of two runs' weight differences (figure 5); none
                                                 named: every pair of one model, task, seed and rank
python -m runs.measure matrix_fit [seed=0]       random 10 x 10 matrices, fitted by LoRA and by VeRA (figure
                                                 6), on the CPU

A RUN is a run id (or its beginning). Each measure is a file in outputs/measures, see runs/record; the same
command again replaces it. Nothing here needs a base model or data: an adapter file is enough.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runs.command import OfRecords, entry_point, one_of, open_ledger, read, setting
from runs.errors import UserError, is_users
from runs.evaluate import find
from runs.record import Record, is_trial, write_measure
from runs.record.text import describe

if TYPE_CHECKING:
    pass
from runs.measure.adapters import magnitude, similarity
from runs.measure.fit import matrix_fit


@dataclass(frozen=True)
class Settings(OfRecords):
    """Of matrix_fit, the seed."""

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
    named = [find(name, output) for name in names]
    jobs = [named] if kind == "similarity" else [[run] for run in named]
    jobs = jobs if names else list(_all(kind, output))
    if not jobs:
        pair = "pair of a LoRA and a VeRA run of one model, task, seed and rank"
        lacking = "finished VeRA run that kept its adapter" if kind == "magnitude" else pair
        raise UserError(f"{output}/records has no {lacking} to measure")
    done = 0
    for runs in jobs:
        try:
            one, other = runs[0], runs[-1]
            found = magnitude(one, output) if kind == "magnitude" else similarity(one, other, output, seed)
        except Exception as error:
            if names or not is_users(error):
                raise
            print(f"left out: {describe(error)}")  # of all runs, those that kept no adapter are many
            continue
        _report(output, found)
        done += 1
    if not done:
        raise UserError(f"none of {len(jobs)} could be measured")
    return 0


def _all(kind: str, output: str) -> Iterator[list[Record]]:
    """What there is to measure: VeRA's finished runs, or LoRA's with VeRA's of the same model, task, seed and
    rank; without those that were told to keep no adapter, and without trials."""
    kept = [
        r
        for r in open_ledger(output, published=False)
        if r["status"] == "done" and r["config"]["keep"] != "none"
    ]
    done = [r for r in kept if not is_trial(r["config"])]
    vera, lora = ([r for r in done if r["config"]["method"]["kind"] == method] for method in ("vera", "lora"))
    if kind == "magnitude":
        yield from ([run] for run in vera)
    else:
        yield from (
            [one, other] for one, other in itertools.product(lora, vera) if _alike(one) == _alike(other)
        )


def _alike(record: Record) -> list[Any]:
    cell, method = record["cell"], record["config"]["method"]
    return [
        record["model"],
        cell["task"],
        record["data"]["content"],
        cell["seed"],
        method["rank"],
        method["sites"],
    ]


def _report(output: str, measure: Record) -> None:
    path = write_measure(output, measure)
    of = " and ".join(
        f"{run['label']['row']} on {run['label']['task']}, seed {run['cell']['seed']}"
        for run in measure["of"]
    )
    words = ", ".join(f"{key} {value:.3g}" for key, value in measure["summary"].items())
    print(f"{measure['kind']}{' of ' + of if of else ''}: {words} -> {path}")


if __name__ == "__main__":
    entry_point(main)
