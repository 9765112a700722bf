"""What the commands that read records cost: CPU seconds and peak memory of each, as a
process of its own, on the published records and on tens of thousands of others."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks.training import Row, time_in_turns
from runs.command.errors import UserError
from runs.record.kept_rows import SETTLED_S
from runs.record.ledger import ROOT, record_path, study_folders
from runs.record.schema import Record

#: The words of each command that is measured, by its name in the table. It takes output=.
COMMANDS = {
    "table table2": ("table", "table2"),
    "plan experiment=table2_base": ("plan", "experiment=table2_base"),
    "findings": ("findings",),
    "report": ("report",),
}
#: How many records there are beside the published ones. The last size is measured only
#: with full=true.
SIZES = (0, 30_000, 100_000)
ROUNDS = 3


def commands(full: bool) -> list[Row]:
    """Measures each command for each number of records. The commands share one user
    cache, which is empty at first: "first" is what the first call of a command took,
    with what the commands before it had left there. full: also with the last of SIZES."""
    rows = list[Row]()
    for size in SIZES if full else SIZES[:-1]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "outputs")
            write_records(output, size)
            work = {
                name: MeasuredCommand(words, output, Path(folder, "cache"))
                for name, words in COMMANDS.items()
            }
            about: Row = {"part": "commands", "records": size}
            # The first call of each command warms it up, and is not in "seconds"
            for row in time_in_turns(work, ROUNDS, about):
                measured = work[row["variant"]]
                first_call = f"{measured.seconds[0]:.3g} s"
                rows.append(row | {"first": first_call, "bytes": measured.peak_bytes})
    return rows


class MeasuredCommand:
    """A command that is measured each time it is called.

    words: its arguments. output: the folder of its records. cache: the user's cache
    folder, which all commands of a size share. seconds: the CPU seconds of each call.
    peak_bytes: the most memory that a call took, without the first one, which fills the
    cache."""

    def __init__(self, words: tuple[str, ...], output: Path, cache: Path) -> None:
        self.words = [*words, f"output={output}"]
        self.cache = cache
        self.seconds = list[float]()
        self.peak_bytes = 0

    def __call__(self) -> float:
        """Runs the command and returns its CPU seconds. Raises UserError if it fails."""
        result = self.cache.with_name("measured.json")
        command = [sys.executable, "-m", "benchmarks.child", str(result)]
        command += [sys.executable, "-m", "vera_bench", *self.words]
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache)}
        ended = subprocess.run(
            command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, check=False
        )
        if ended.returncode:
            message = ended.stderr.decode().strip()
            raise UserError(f"{' '.join(self.words)} failed: {message}")
        measured = json.loads(result.read_text())
        if self.seconds:
            self.peak_bytes = max(self.peak_bytes, measured["bytes"])
        self.seconds.append(measured["seconds"])
        return self.seconds[-1]


def write_records(output: Path, count: int) -> None:
    """Writes `count` records below a folder: copies of the published ones, with ids and
    seeds of their own. Then waits SETTLED_S, since rows of younger files are not kept in
    the cache."""
    texts: list[bytes] = []
    for folder in study_folders():
        texts += (folder / "records.jsonl").read_bytes().splitlines()
    for number in range(count):
        record: Record = orjson.loads(texts[number % len(texts)])
        # each further round of copies has seeds that are 1000 higher
        _reseed(record, 1000 * (1 + number // len(texts)))
        record["id"] = hashlib.sha256(f"{record['id']} {number}".encode()).hexdigest()
        record["id"] = record["id"][:12]
        path = record_path(output, record["id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(record) + b"\n")
    time.sleep(SETTLED_S)


def _reseed(record: Record, added: int) -> None:
    """Adds a number to a record's seed, in all places where the record has it."""
    seed = record["cell"]["seed"]
    record["cell"]["seed"] = seed + added
    for key in ("seed", "data_seed"):
        if record["config"].get(key) == seed:
            record["config"][key] = seed + added
