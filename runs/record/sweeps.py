"""Which runs a sweep has: OUTPUT/sweeps/NAME.json. You can delete the folder NAME beside
it, which has the logs of a launcher."""

import json
from collections.abc import Sequence
from pathlib import Path

import orjson

from runs.record.files import write_atomically


def write_sweep(output: str | Path, name: str, ids: Sequence[str]) -> None:
    """Writes the ids of a sweep's runs, in its order."""
    text = json.dumps({"name": name, "runs": list(ids)}) + "\n"
    write_atomically(Path(output, "sweeps", f"{name}.json"), text)


def read_sweep(output: str | Path, name: str) -> list[str]:
    """The ids of a sweep's runs, in its order."""
    content = Path(output, "sweeps", f"{name}.json").read_bytes()
    return list(orjson.loads(content)["runs"])


def sweep_names(output: str | Path) -> list[str]:
    """The names of the sweeps in an output folder, the newest first."""
    folder = Path(output) / "sweeps"
    files = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    return [
        path.stem for path in sorted(files, key=lambda path: -path.stat().st_mtime_ns)
    ]
