"""How fast this machine trains a row of a model: the FLOP a second of some steps, which
later plans find in the user's cache. torch is imported by `probe`."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from runs.forecast.work import outline
from runs.machine import gpus
from runs.record.cell import hash_of
from runs.record.files import write_atomically
from runs.record.text import describe, duration, plural
from runs.run.definition import Run, epoch_batches
from tasks.fetch import cache_folder

if TYPE_CHECKING:
    from runs.training.loop import Training

#: The most steps and seconds of a probe, for each row of a model.
STEPS, SECONDS = 20, 20


class Rate(NamedTuple):
    """FLOP a second, and in words where the number is from."""

    flops: float
    source: str


class KeptRate(TypedDict):
    """What the cache has of a probe. label: of the run that was measured. busy: the
    load of the machine, where other processes computed at the same time."""

    flops: float
    label: str
    busy: NotRequired[str]


def probe(runs: Iterable[Run]) -> None:
    """Does some steps of each row of each model, on one of its tasks, and keeps the
    FLOP a second. A line gives the reason for each row that cannot be measured."""
    rows = dict[Path, Run]()
    for run in runs:
        rows.setdefault(rate_file(run), run)
    if not rows:
        print("probe: nothing is measured, since every run is done or blocked")
        return
    # before the first step, which is a load itself
    busy = busy_words()
    count = plural(len(rows), "row")
    print(f"probe of {count}: at most {STEPS} steps and {SECONDS}s each")
    if busy:
        print(
            f"note: this machine is busy ({busy}), so these rates are too low. Repeat "
            "probe=true when it is idle"
        )
    for number, (file, run) in enumerate(rows.items(), 1):
        result = _measure(run, file, busy)
        print(f"probe {number}/{len(rows)}: {run.label}: {result}")


def busy_words() -> str:
    """The load of this machine where more processes want to compute than it has cores,
    else ""."""
    cores = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError:  # not known here
        return ""
    return f"load {load:.1f} on {plural(cores, 'core')}" if load > cores else ""


def _measure(run: Run, file: Path, busy: str) -> str:
    """Measures a run's rate and keeps it in a file; returns that in words."""
    step_flops = outline(run).step_flops
    if not step_flops:
        return "left out, the FLOPs of its steps are not known"
    try:
        times = _time_steps(run)
    except Exception as error:
        # of the run's settings, of a model's own code, of a full device
        reason = f"a probe needs the run's model and data here ({describe(error)})"
        return f"left out, {reason}"
    rate = len(times) * step_flops / sum(times)
    words = f"{plural(len(times), 'step')} in {duration(sum(times))}"
    words += f", {_in_words(rate)}"
    earlier = _read_rate(file)
    if busy and earlier and "busy" not in earlier:
        earlier_rate = _in_words(earlier["flops"])
        return f"{words}; plans keep the {earlier_rate} of a probe on an idle machine"
    measured: KeptRate = {"flops": rate, "label": run.label}
    if busy:
        measured["busy"] = busy
    # a read-only home costs the forecast, no more
    with contextlib.suppress(OSError):
        write_atomically(file, json.dumps(measured))
    return words


def _in_words(rate: float) -> str:
    if rate < 1e11:
        return f"{rate / 1e9:.2g} GFLOP/s"
    return f"{rate / 1e12:,.2f} TFLOP/s"


def _time_steps(run: Run) -> list[float]:
    """The seconds of some steps of a run, without the first one, which loads
    kernels."""
    from runs.training.loop import Training

    with tempfile.TemporaryDirectory() as folder:
        config = run.config.copy()
        config["output"] = folder
        config["init_from"] = None
        alone = replace(run, config=config, start=None)
        training = Training(alone, "probe", lambda event: None)
        size = config["train"]["effective_batch"]
        batches = epoch_batches(training.lengths, size, 0, 0, training.task.block)
        times = list[float]()
        for batch in batches[: STEPS + 1]:
            if sum(times[1:]) >= SECONDS:
                break
            start = time.perf_counter()
            _do_step(training, batch)
            times.append(time.perf_counter() - start)
        training.accelerator.free_memory()
    return times[1:] or times


def _do_step(training: "Training", batch: list[int]) -> None:
    """Does a step and waits for the device: of training, or the forward pass of a run
    that does no more."""
    import torch

    if training.groups:
        float(training.step(batch))
        return
    with torch.no_grad(), training.accelerator.autocast():
        float(training.objective.loss(training.model, batch))


def device_names(run: Run) -> list[str]:
    """The names of the devices of this machine that a run may compute on."""
    names = gpus.cards("Name") if run.config["device"] != "cpu" else []
    return names or [gpus.processor()]


def rate_file(run: Run) -> Path:
    """Where a probe keeps the FLOP a second of a run's row: by machine, model,
    precision and row."""
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    variables = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    environment = [os.environ.get(name) for name in variables]
    machine = [
        device_names(run),
        gpus.processor(),
        cores,
        environment,
        version("torch"),
    ]
    config = run.config
    row = [
        config["device"],
        config["model"],
        config["micro_batch"],
        config["gradient_checkpointing"],
    ]
    key = hash_of([machine, row, run.method, run.config["train"]["precision"]])
    return cache_folder() / "rates" / f"{key[:24]}.json"


def probed_rate(run: Run) -> Rate | None:
    """The rate that a probe has measured of a run's row on this machine, if any."""
    kept_rate = _read_rate(rate_file(run))
    if kept_rate is None:
        return None
    source = "a probe's rate"
    if "busy" in kept_rate:
        source += f" while this machine was busy: {kept_rate['busy']}"
    return Rate(kept_rate["flops"], source)


def _read_rate(file: Path) -> KeptRate | None:
    """What the cache has of a probe; None where it has nothing, or something damaged."""
    try:
        content = json.loads(file.read_bytes())
        # older files have no label, and do not say whether the machine was busy
        kept_rate: KeptRate = {
            "flops": float(content["flops"]),
            "label": content["label"],
        }
        if "busy" in content:
            kept_rate["busy"] = str(content["busy"])
        return kept_rate
    except (OSError, ValueError, KeyError, TypeError):
        return None
