"""One run, from its start to its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runs.config import Run
from runs.errors import rank
from runs.lengths import keep_lengths
from runs.record import Record, run_folder, write_atomically, write_record
from runs.training.context import Owner, Report, Stop
from runs.training.loop import Training


def train(
    run: Run,
    run_id: str,
    report: Report,
    owner: Owner | None = None,
    stop: Stop | None = None,
    attempts: Mapping[str, Any] | None = None,
) -> Record:
    """Does one run and writes its record. What the run needed to go on stays: whoever sees the record tidies
    up.

    attempts: how earlier ones `ended`, and what `deviations` came of that.

    Raises StoppedError where `stop` asks for it, and LostLeaseError where another executor has the run.
    """
    if not rank():
        write_configuration(run, run_folder(run.config["output"], run_id))
    training = Training(run, run_id, report, owner, stop, attempts)
    if training.accelerator.is_main_process:
        keep_lengths(run, training.task)
    record = training.go()
    draws = training.task.pictures and record["status"] == "done"
    if draws and training.predictions is None:  # resumed after the last epoch
        training.predictions = training.evaluate(training.trained, training.inputs)[1]
    if training.accelerator.is_main_process:
        if draws:
            try:
                training.task.illustrate(training.folder, training.predictions)
            except Exception as error:  # a picture is not worth a run
                why = f"{type(error).__name__}: {error}"
                print(f"the pictures of its predictions were not drawn ({why})", flush=True)
        both = run.config["keep"] == "both" and training.task.decodes
        if both and record["status"] == "done" and run.config["adapter_precision"] != "fp32":
            # The model carries it since it was decoded. In its place it would be decoded again, rounded,
            # after a kill.
            training.write(training.folder / "adapter_best_rounded.safetensors")
        if owner:
            owner.write(run.config["output"], record)
        else:
            write_record(run.config["output"], record)
    training.accelerator.wait_for_everyone()
    training.accelerator.free_memory()
    return record


def write_configuration(run: Run, folder: Path) -> None:
    """Writes what Hydra's own applications leave in each run's folder: config.yaml, resolved, and
    overrides.yaml, the command line that means this run."""
    overrides = [*run.overrides, f"seed={run.seed}"]
    write_atomically(folder / "config.yaml", yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
    write_atomically(folder / "overrides.yaml", yaml.safe_dump(overrides, allow_unicode=True))
