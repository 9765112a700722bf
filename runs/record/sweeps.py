"""Which runs a sweep has: OUTPUT/sweeps/NAME.json.

The folder NAME beside it holds the files and logs of a launcher's executors. It can be deleted, and the file
still says which runs belong together."""

import json
from collections.abc import Sequence
from pathlib import Path

import orjson

from runs.record.files import read_regular, write_atomically


def _path(output: str | Path, name: str) -> Path:
    return Path(output) / "sweeps" / f"{name}.json"


def write_sweep(output: str | Path, name: str, ids: Sequence[str]) -> None:
    """Writes the ids of a sweep's runs, in its order."""
    write_atomically(_path(output, name), json.dumps({"name": name, "runs": list(ids)}) + "\n")


def read_sweep(output: str | Path, name: str) -> list[str]:
    """The ids of a sweep's runs. Raises ValueError, naming the file, where it is missing or damaged."""
    path = _path(output, name)
    content = read_regular(path)
    try:
        return [str(one) for one in orjson.loads(content)["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a sweep ({error})") from None


def sweep_names(output: str | Path) -> list[str]:
    """The sweeps of a folder, the newest first."""
    folder = Path(output) / "sweeps"
    files = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    return [path.stem for path in sorted(files, key=lambda path: -path.stat().st_mtime_ns)]
