"""What a run starts from (init_from): another run's adapter, or an adapter file."""

from pathlib import Path

from runs.config import Run
from runs.errors import UserError
from runs.identity import hash_files, run_id
from runs.record import Record, read_record, record_path, run_folder


def start_id(run: Run) -> str | None:
    """What of its start belongs to a run's identity: the other run's id and which epoch it kept, or the
    file's hash.

    None: not known yet. Raises UserError for a file that is missing.
    """
    word = run.config["init_from"]
    if word.endswith(".safetensors"):
        if not Path(word).is_file():
            raise UserError(f"init_from={word}: no such file")
        return hash_files({"adapter": Path(word)})
    found = run_id(run.start) if run.start else str(word)
    if found is None:
        return None
    # The same run keeps other values by these keys, which are no part of its own identity. An older record
    # may be of select=unbiased, which kept the epoch chosen on one half of dev; any other keeps the best one
    # of the whole.
    path = record_path(run.config["output"], found)
    config = _record(path)["config"] if path.is_file() else run.start.config if run.start else {}
    kept = config.get("keep", "best"), config.get("select", "paper"), config.get("adapter_precision", "fp32")
    usual = kept[0] in ("best", "none") and kept[1] != "unbiased" and kept[2] == "fp32"
    return found if usual else f"{found} {' '.join(kept)}"


def start_file(run: Run) -> Path:
    """The adapter file that a run starts from. Raises UserError, saying what it waits for, while it is not
    there."""
    word = run.config["init_from"]
    if word.endswith(".safetensors"):
        return Path(word)
    found, output = (run_id(run.start) if run.start else word), run.config["output"]
    path = run_folder(output, str(found)) / "adapter.safetensors"
    name = f"{run.start.label} (run {found or '?'})" if run.start else f"run {word}"
    record = record_path(output, str(found))
    if not record.is_file():
        raise UserError(f"waits for {name}, which has not run here")
    status = _record(record)["status"]
    if status != "done":
        raise UserError(f"waits for {name}, which is {status}")
    if not path.is_file():
        raise UserError(
            f"waits for the adapter of {name}, which kept none: delete {record} and run it again with"
            " keep=best"
        )
    return path


def _record(path: Path) -> Record:
    try:
        return read_record(path)
    except ValueError as error:
        raise UserError(f"{error}: delete it, and the run is done again") from None
