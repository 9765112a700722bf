"""What a run starts from (init_from): another run's adapter, or an adapter file."""

from pathlib import Path

from runs.config import Run
from runs.errors import UserError
from runs.identity import hash_files, run_id
from runs.record import read_record, record_path, run_folder


def start_id(run: Run) -> str | None:
    """What of its start belongs to a run's identity: the other run's id, or the file's hash. None: not known yet.

    Raises UserError for a file that is missing.
    """
    word = run.config["init_from"]
    if run.start:
        return run_id(run.start)
    if not word.endswith(".safetensors"):
        return str(word)
    if not Path(word).is_file():
        raise UserError(f"init_from={word}: no such file")
    return hash_files({"adapter": Path(word)})


def start_file(run: Run) -> Path:
    """The adapter file that a run starts from. Raises UserError, saying what it waits for, while it is not there."""
    word = run.config["init_from"]
    if word.endswith(".safetensors"):
        return Path(word)
    found, output = start_id(run), run.config["output"]
    path = run_folder(output, str(found)) / "adapter.safetensors"
    name = f"{run.start.label} (run {found or '?'})" if run.start else f"run {word}"
    record = record_path(output, str(found))
    if not record.is_file():
        raise UserError(f"waits for {name}, which has not run here")
    status = read_record(record)["status"]
    if status != "done":
        raise UserError(f"waits for {name}, which is {status}")
    if not path.is_file():
        raise UserError(f"waits for the adapter of {name}, which kept none: delete {record} and run it again with keep=best")
    return path
