"""How fast this machine trains a row (a method with its settings) of a model: the FLOP a
second of some steps, which later plans find in the user's cache. torch is imported by
`probe`."""

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

import psutil

from runs.forecast.work import outline
from runs.machine import gpus
from runs.record.cell import hash_of
from runs.record.files import write_atomically
from runs.record.text import describe, duration, plural
from runs.run.definition import Run, epoch_batches
from tasks.fetch import cache_folder

if TYPE_CHECKING:
    from runs.training.loop import Training

#: A probe of a row ends after so many steps, or with the step that goes beyond so many
#: seconds. The first step, which loads kernels, does not count.
STEPS = 20
SECONDS = 20
#: The share of the cores that other processes may use during a probe. Training on a CPU
#: takes every core, and what another process uses is taken from it: at a tenth, steps
#: are about a tenth slower.
SPARE_SHARE = 0.1


class Rate(NamedTuple):
    """FLOP a second, and in words where the number is from."""

    flops: float
    source: str


class KeptRate(TypedDict):
    """What the cache has of a probe.

    Attributes:
        flops: The FLOP a second.
        label: Of the run that was measured.
        busy: `busy_words`, where other processes slowed the probe.
    """

    flops: float
    label: str
    busy: NotRequired[str]


def probe(runs: Iterable[Run]) -> None:
    """Does some steps of each row of each model, on one of its tasks, and keeps the
    FLOP a second in the user's cache. Prints a line for each row: its rate, or why it
    cannot be measured."""
    run_by_rate_file = dict[Path, Run]()
    for run in runs:
        run_by_rate_file.setdefault(rate_file(run), run)
    if not run_by_rate_file:
        print("probe: nothing is measured, since every run is done or blocked")
        return
    count = plural(len(run_by_rate_file), "row")
    print(f"probe of {count}: {STEPS} steps of each, or about {SECONDS}s")
    notes = list[str]()
    reasons = set[str]()
    for number, (file, run) in enumerate(run_by_rate_file.items(), 1):
        try:
            result, busy_note = _measure(run, file)
        except _LeftOutError as error:
            busy_note = ""
            reason = str(error)
            result = f"left out, {'likewise' if reason in reasons else reason}"
            reasons.add(reason)
        print(f"probe {number}/{len(run_by_rate_file)}: {run.label}: {result}")
        if busy_note:
            notes.append(busy_note)
    if notes:
        print(
            f"note: this machine is busy ({notes[-1]}), so these rates are too low. "
            "Repeat probe=true when it is idle"
        )


class OtherProcesses:
    """The processor time of other processes since this object was made. The machine's
    load says less: it is an average over past minutes, and counts the probe itself."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the next call returns the share since this call
        self.start = time.perf_counter()
        self.own_start = time.process_time()

    def cores(self) -> float:
        """How many cores other processes have used since this object was made, on
        average."""
        used_cores = psutil.cpu_percent() / 100 * (os.cpu_count() or 1)
        elapsed = time.perf_counter() - self.start
        own_cores = (time.process_time() - self.own_start) / elapsed
        return float(max(used_cores - own_cores, 0.0))


def busy_words(run: Run, other_cores: float) -> str:
    """How many cores other processes used while a run was measured, in words; "" where
    that did not slow it. A run on a GPU needs one core, a run on the CPU all of them."""
    cores = os.cpu_count() or 1
    on_gpu = run.config["device"] != "cpu" and gpus.attribute_of_all("Name")
    spare_cores = cores - 1 if on_gpu else SPARE_SHARE * cores
    if other_cores <= spare_cores:
        return ""
    return f"other processes used {other_cores:.1f} of {plural(cores, 'core')}"


class _LeftOutError(Exception):
    """A row cannot be measured. The message is the reason."""


def _measure(run: Run, file: Path) -> tuple[str, str]:
    """Measures a run's rate and keeps it in a file, unless the machine is busy and the
    file has a rate from when it was idle. Returns what was done, in words, and
    `busy_words`. Raises _LeftOutError for a run that cannot be measured."""
    step_flops = outline(run).step_flops
    if not step_flops:
        raise _LeftOutError("the FLOPs of its steps are not known")
    other_processes = OtherProcesses()
    try:
        times = _time_steps(run)
    except Exception as error:
        # from the run's settings, a model's own code, or a full device
        reason = f"a probe needs the run's model and data here ({describe(error)})"
        raise _LeftOutError(reason) from error
    busy_note = busy_words(run, other_processes.cores())
    rate = len(times) * step_flops / sum(times)
    text = f"{plural(len(times), 'step')} in {duration(sum(times))}"
    text += f", {_rate_text(rate)}"
    earlier = _read_rate(file)
    if busy_note and earlier and "busy" not in earlier:
        earlier_rate = _rate_text(earlier["flops"])
        text += f"; plans keep the {earlier_rate} of a probe on an idle machine"
        return text, busy_note
    measured: KeptRate = {"flops": rate, "label": run.label}
    if busy_note:
        measured["busy"] = busy_note
    # in a home that cannot be written, plans just do not find the rate
    with contextlib.suppress(OSError):
        write_atomically(file, json.dumps(measured))
    return text, busy_note


def _rate_text(rate: float) -> str:
    if rate < 1e11:
        return f"{rate / 1e9:.2g} GFLOP/s"
    return f"{rate / 1e12:,.2f} TFLOP/s"


def _time_steps(run: Run) -> list[float]:
    """The seconds of each of some steps of a run, without the first one, which loads
    kernels; of an epoch with one step, that one."""
    from runs.training.loop import Training

    with tempfile.TemporaryDirectory() as folder:
        config = run.config.copy()
        config["output"] = folder
        config["init_from"] = None  # the adapter's values do not change the speed
        run_without_start = replace(run, config=config, start=None)
        training = Training(run_without_start, "probe", lambda event: None)
        batches = epoch_batches(
            training.lengths,
            size=config["train"]["effective_batch"],
            seed=0,
            epoch=0,
            block=training.task.block,
        )
        times = list[float]()
        for batch in batches[: STEPS + 1]:
            if sum(times[1:]) >= SECONDS:
                break
            start = time.perf_counter()
            _do_step(training, batch)
            times.append(time.perf_counter() - start)
        training.accelerator.free_memory()
    return times[1:] or times  # the first step loads kernels


def _do_step(training: "Training", batch: list[int]) -> None:
    """Does one training step or, where nothing trains, one forward pass."""
    import torch

    # float() waits for the device, so that the whole step is timed
    if training.groups:
        float(training.step(batch))
        return
    with torch.no_grad(), training.accelerator.autocast():
        float(training.objective.loss(training.model, batch))


def device_names(run: Run) -> list[str]:
    """The names of the GPUs of this machine that a run may compute on, or else of its
    processor."""
    names = gpus.attribute_of_all("Name") if run.config["device"] != "cpu" else []
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
    settings = [
        config["device"],
        config["model"],
        config["micro_batch"],
        config["gradient_checkpointing"],
    ]
    file_hash = hash_of(
        [machine, settings, run.method, run.config["train"]["precision"]]
    )
    return cache_folder() / "rates" / f"{file_hash[:24]}.json"


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
    """What the cache has of a probe; None where it has nothing, something damaged, or an
    older file without a label, which does not say whether the machine was busy."""
    try:
        content = json.loads(file.read_bytes())
        kept_rate: KeptRate = {
            "flops": float(content["flops"]),
            "label": content["label"],
        }
        if "busy" in content:
            kept_rate["busy"] = str(content["busy"])
        return kept_rate
    except (OSError, ValueError, KeyError, TypeError):
        return None
