"""Measures how many FLOP a second this device reaches on the rows of a plan: by the first steps of a run of
each, with its model and data. It keeps nothing but the rate."""

import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace

from runs.forecast import rates
from runs.forecast.cost import cell_key, outline
from runs.record.text import describe, duration, plural
from runs.run import UNLIKE_OTHERS, Run
from runs.training.build import epoch_batches
from runs.training.loop import Training


def probe(runs: Iterable[Run]) -> None:
    """Measures each row of each model once, on its task with the most FLOPs, and keeps its rate. Rows that
    were measured on this machine before are left out; a line gives the reason for each that cannot be
    measured."""
    rows: dict[str, tuple[float, Run]] = {}
    for run in {cell_key(run): run for run in runs}.values():
        known = outline(run) if run.method["kind"] not in UNLIKE_OTHERS and not rates.measured(run) else None
        if known and known.flops and known.flops > rows.get(key := rates.row_key(run), (0.0,))[0]:
            rows[key] = known.flops, run
    print(f"probe: at most {rates.STEPS} steps and {rates.SECONDS}s for each of {plural(len(rows), 'row')}")
    for number, (_, run) in enumerate(rows.values(), 1):
        name = f"probe {number}/{len(rows)}: {run.label}"
        try:
            seconds, steps = step_seconds(run)
        except Exception as error:  # of the run's settings, of a model's own code, of a full device
            print(f"{name}: left out ({describe(error)})")
            continue
        known = outline(run)
        flops = (known.step_flops if known else None) or 0.0
        rates.keep(run, flops / seconds)
        print(
            f"{name}: {plural(steps, 'step')} of {duration(seconds)}, {flops / seconds / 1e12:,.2f} TFLOP/s"
        )


def step_seconds(run: Run) -> tuple[float, int]:
    """The mean seconds of a training step, and of how many; without the first one, which loads kernels."""
    with tempfile.TemporaryDirectory() as folder:
        config = run.config | {"output": folder, "init_from": None}
        training = Training(replace(run, config=config, start=None), "probe", lambda event: None)
        batches = epoch_batches(
            training.lengths, config["train"]["effective_batch"], 0, 0, training.task.block
        )
        training.task.begin_epoch(0, batches[: rates.STEPS + 1])
        times = list[float]()
        while len(times) <= min(rates.STEPS, len(batches) - 1) and sum(times[1:]) < rates.SECONDS:
            start = time.perf_counter()
            float(training.step(batches[len(times)]))  # waits for the device
            times.append(time.perf_counter() - start)
        training.accelerator.free_memory()
    times = times[1:] or times
    return sum(times) / len(times), len(times)
