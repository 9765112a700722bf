"""Computes the measures behind figures 3, 5 and 6: from the adapters of finished runs,
or by a fit that takes seconds.

vera-bench measure magnitude [RUN ...]
    how far each d and b has moved (VeRA paper, figure 3); without RUN for
    every VeRA run
vera-bench measure similarity [LORA VERA]
    cosine of two runs' weight differences (figure 5); without runs for every
    pair of one model, task, seed and rank
vera-bench measure matrix_fit [seed=0]
    random 10 x 10 matrices, fitted by LoRA and by VeRA on the CPU (figure 6)

RUN is a run id, or its beginning. Each measure is a file in outputs/measures, which
the same command replaces. Adapter files are enough: you need neither the base model
nor the data.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from runs.command.advice import require_known
from runs.command.errors import UserError, is_user_error
from runs.command.parser import RecordSettings, entry_point, read_command_line, setting
from runs.command.records import open_ledger
from runs.evaluate import find_finished
from runs.measures.adapters import magnitude, similarity
from runs.measures.contract import MeasuredValues
from runs.measures.matrix_fit import matrix_fit
from runs.record.cell import hash_of, is_trial_or_stopped
from runs.record.ledger import write_record
from runs.record.schema import MEASURE_SCHEMA, Measure, MeasureKind, Provenance, Record
from runs.record.text import describe


class Kind(NamedTuple):
    """A kind of measure.

    Attributes:
        compute: computes it from the seed, the output folder and the records of its
            runs.
        run_count: how many runs one measure is of.
    """

    compute: Callable[..., MeasuredValues]
    run_count: int


MEASURES = {
    "magnitude": Kind(magnitude, 1),
    "similarity": Kind(similarity, 2),
    "matrix_fit": Kind(matrix_fit, 0),
}


@dataclass(frozen=True)
class Settings(RecordSettings):
    seed: int = setting(0, "of the random matrices of similarity and matrix_fit")


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, Settings, positional="MEASURE [RUN ...]")
    name, *run_names = line.positional
    output = line.settings.output
    seed = line.settings.seed
    kind = MEASURES[require_known("measure", name, MEASURES)]
    if seed < 0 or (name == "magnitude" and "seed" in line.given):
        raise UserError(f"seed={seed}: should be at least 0, and magnitude takes none")
    runs_of_measures = _runs_of_measures(name, run_names, output)
    if not runs_of_measures:
        raise UserError(
            f"{output}/records has no runs for {name}, finished and with their adapters"
            " (--help)"
        )
    provenance = _provenance()
    written = 0
    for records in runs_of_measures:
        started = time.monotonic()
        try:
            measure = kind.compute(seed, output, *records)
        except Exception as error:
            if run_names or not is_user_error(error):
                raise
            # of all runs many have kept no adapter, which is no mistake
            print(f"left out: {describe(error)}")
            continue
        seconds = time.monotonic() - started
        content = _file_content(name, measure, provenance, seconds)
        path = write_record(output, content, "measure")
        print(f"{_summary_line(name, measure)} -> {path}")
        written += 1
    if not written:
        raise UserError(f"none of {len(runs_of_measures)} could be measured")
    return 0


def _file_content(
    name: str, measure: MeasuredValues, provenance: Provenance, seconds: float
) -> Measure:
    """What the file of a measure contains."""
    return {
        "schema": MEASURE_SCHEMA,
        "id": measure_id(name, measure),
        "kind": cast(MeasureKind, name),
        "of": measure["of"],
        "settings": measure["settings"],
        "seeds": measure["seeds"],
        "values": {**measure["values"]},
        "summary": {**measure["summary"]},
        **provenance,
        "seconds": round(seconds, 3),
    }


def _provenance() -> Provenance:
    """The code, the versions and the machine that a measure comes from."""
    import torch

    from runs.run.provenance import code_state, make_provenance

    return make_provenance(code_state(), torch.device("cpu"))


def _summary_line(name: str, measure: MeasuredValues) -> str:
    """A measure, its runs and its summary in one line."""
    runs = []
    for run in measure["of"]:
        label = run["label"]
        seed = run["cell"]["seed"]
        runs.append(f"{label['row']} on {label['task']}, seed {seed}")
    title = f"{name} of {' and '.join(runs)}" if runs else name
    numbers = [f"{key} {number:.3g}" for key, number in measure["summary"].items()]
    return f"{title}: {', '.join(numbers)}"


def measure_id(name: str, measure: MeasuredValues) -> str:
    """A hash of the measure's name, the runs, the settings and the seeds."""
    runs = [[run["id"], run["adapter"]] for run in measure["of"]]
    return hash_of([name, runs, measure["settings"], measure["seeds"]])[:12]


def _runs_of_measures(
    name: str, run_names: Sequence[str], output: str
) -> list[tuple[Record, ...]]:
    """For each measure to compute, the records of its runs: of those that the user names
    or, without names, of all for which the measure can be computed. Raises UserError
    for a wrong number of names."""
    if not run_names:
        return _all_runs_of_measures(name, output)
    run_count = MEASURES[name].run_count
    # magnitude computes one measure for each run that is named
    if run_count == 0 or (run_count == 2 and len(run_names) != 2):
        number = "two" if run_count else "no"
        raise UserError(f"{name} is of {number} runs, not of {', '.join(run_names)}")
    records = [find_finished(run_name, output) for run_name in run_names]
    if run_count == 2:
        return [tuple(records)]
    return [(record,) for record in records]


def _all_runs_of_measures(name: str, output: str) -> list[tuple[Record, ...]]:
    """The records of the runs of every measure that can be computed: each finished run
    of VeRA, or each pair of LoRA and VeRA with the same model, task, data, seed, rank
    and sites; for matrix_fit one measure of no runs. Trials, stopped
    runs and runs with keep=none are left out."""
    if name == "matrix_fit":
        return [()]
    runs_by_kind = defaultdict[str, list[Record]](list)
    for record in open_ledger(output, published=False):
        config = record["config"]
        has_adapter = record["status"] == "done" and config["keep"] != "none"
        if has_adapter and not is_trial_or_stopped(config):
            runs_by_kind[config["method"]["kind"]].append(record)
    if name == "magnitude":
        return [(record,) for record in runs_by_kind["vera"]]
    pairs = list[tuple[Record, ...]]()
    for lora, vera in itertools.product(runs_by_kind["lora"], runs_by_kind["vera"]):
        if _paired_settings(lora) == _paired_settings(vera):
            pairs.append((lora, vera))
    return pairs


def _paired_settings(record: Record) -> list[object]:
    """What the two runs of a pair must have in common."""
    cell = record["cell"]
    method = record["config"]["method"]
    return [
        record["model"],
        cell["task"],
        record["data"]["content"],
        cell["seed"],
        method["rank"],
        method["sites"],
    ]


if __name__ == "__main__":
    entry_point(main)
