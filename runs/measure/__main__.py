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
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from runs.command import OfRecords, entry_point, one_of, open_ledger, read, setting
from runs.errors import UserError, is_users
from runs.evaluate import find
from runs.identity import hash_of
from runs.measure.adapters import magnitude, similarity
from runs.measure.fit import matrix_fit
from runs.record import MEASURE_SCHEMA, Record, is_trial, write_measure
from runs.record.text import describe


@dataclass(frozen=True)
class Settings(OfRecords):
    """Settings of the command."""

    seed: int = setting(0, "of the random matrices of similarity and matrix_fit")


#: Of each measure, how many runs it is of, and what a ledger without these lacks.
MEASURES = {
    "magnitude": (1, "finished VeRA run that kept its adapter"),
    "similarity": (2, "pair of a LoRA and a VeRA run of one model, task, seed and rank"),
    "matrix_fit": (0, ""),
}


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="MEASURE [RUN ...]")
    (kind, *names), output, seed = line.names, line.settings.output, line.settings.seed
    count, wanted = MEASURES[one_of("measure", kind, MEASURES)]
    if seed < 0 or (kind == "magnitude" and "seed" in line.given):
        raise UserError(f"seed={seed}: should be at least 0, and magnitude takes none")
    if names and (not count or (count == 2 and len(names) != 2)):
        raise UserError(f"{kind} is of {'two' if count else 'no'} runs, not of {', '.join(names)}")
    records = [find(name, output) for name in names]
    jobs = [tuple(records)] if count == 2 else [(record,) for record in records]
    jobs = jobs if names else _all(kind, output)
    if not jobs:
        raise UserError(f"{output}/records has no {wanted} to measure")
    import torch

    from runs.training.provenance import code_state, machine, versions

    about = {"code": code_state(), "versions": versions(), "device": machine(torch.device("cpu"))}
    measures: dict[str, Callable[..., Record]] = {
        "magnitude": partial(magnitude, output=output),
        "similarity": partial(similarity, output=output, seed=seed),
        "matrix_fit": partial(matrix_fit, seed),
    }
    done = 0
    for job in jobs:
        started = time.monotonic()
        try:
            found = measures[kind](*job)
        except Exception as error:
            if names or not is_users(error):
                raise
            print(f"left out: {describe(error)}")  # many of all runs have kept no adapter
            continue
        found |= {"schema": MEASURE_SCHEMA, "id": measure_id(kind, found), "kind": kind, **about}
        path = write_measure(output, found | {"seconds": round(time.monotonic() - started, 3)})
        runs = [(run["label"], run["cell"]["seed"]) for run in found["of"]]
        of = " and ".join(f"{label['row']} on {label['task']}, seed {number}" for label, number in runs)
        words = ", ".join(f"{key} {value:.3g}" for key, value in found["summary"].items())
        print(f"{kind}{' of ' + of if of else ''}: {words} -> {path}")
        done += 1
    if not done:
        raise UserError(f"none of {len(jobs)} could be measured")
    return 0


def measure_id(kind: str, found: Record) -> str:
    """A hash of the kind, the runs, the settings and the seeds."""
    of = [[run["id"], run["adapter"]] for run in found["of"]]
    return hash_of([kind, of, found["settings"], found["seeds"]])[:12]


def _all(kind: str, output: str) -> list[tuple[Record, ...]]:
    """The runs of each measure: VeRA's finished runs, or LoRA's and VeRA's of the same model, task, data,
    seed, rank and sites; without trials and runs with keep=none."""
    if kind == "matrix_fit":
        return [()]
    done = [r for r in open_ledger(output, published=False) if r["status"] == "done"]
    kept = [r for r in done if r["config"]["keep"] != "none" and not is_trial(r["config"])]
    vera, lora = ([r for r in kept if r["config"]["method"]["kind"] == method] for method in ("vera", "lora"))
    if kind == "magnitude":
        return [(run,) for run in vera]

    def shared(record: Record) -> list[object]:
        cell, method, content = record["cell"], record["config"]["method"], record["data"]["content"]
        return [record["model"], cell["task"], content, cell["seed"], method["rank"], method["sites"]]

    return [pair for pair in itertools.product(lora, vera) if shared(pair[0]) == shared(pair[1])]


if __name__ == "__main__":
    entry_point(main)
