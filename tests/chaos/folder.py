"""An output folder: what has to be equal in it at the end, and the damage that a
campaign does to its files."""

import random
from pathlib import Path

from running import comparable

from runs.record.ledger import finished_record
from runs.record.schema import Record

#: Files of a run that is not finished, which may be damaged.
FRAGILE = (
    "attempts/*/checkpoint.safetensors",
    "attempts/*/attempt.json",
    "progress.json",
)
#: How often a finished record is among the files that may be damaged.
RECORD_SHARE = 0.1


def finished(output: Path) -> dict[str, Record]:
    """The finished records of a folder, by run; damaged ones count as none."""
    records = {}
    for path in output.glob("records/[!.]*.json"):
        record = finished_record(output, path.stem)
        if record:
            records[path.stem] = record
    return records


def state_of(output: Path) -> dict[str, object]:
    """What has to be equal, by its name: the records without times and places, the
    files of each run but for its log, and what is left of records."""
    state: dict[str, object] = {}
    for run_id, record in finished(output).items():
        state[f"record {run_id}"] = comparable(record)
    for path in sorted((*output.glob("runs/*/**/*"), *output.glob("records/.*"))):
        if path.name != "log.txt":
            state[str(path.relative_to(output))] = _content(path, output)
    return state


def _content(path: Path, output: Path) -> object:
    if path.is_dir():
        return "a folder"
    if path.suffix == ".yaml":  # it names the output folder
        text = path.read_text().replace(str(output), "OUTPUT")
        return sorted(text.splitlines())
    return path.read_bytes()


def differences(expected: dict[str, object], actual: dict[str, object]) -> list[str]:
    """What is not as expected, a sentence each."""
    sentences = []
    for name in sorted(expected | actual):
        if name not in actual:
            sentences.append(f"{name} is missing")
        elif name not in expected:
            sentences.append(f"{name} is left over")
        elif expected[name] != actual[name]:
            sentences.append(f"{name} differs")
    return sentences


def damage_a_file(output: Path, dice: random.Random) -> str | None:
    """Damages a file of a run that is not finished, or a finished record. Returns what
    it did; None without such a file."""
    paths = list[Path]()
    for pattern in FRAGILE:
        paths += output.glob(f"runs/*/{pattern}")
    for path in output.glob("records/*.json"):
        if dice.random() < RECORD_SHARE:
            paths.append(path)
    if not paths:
        return None
    path = dice.choice(sorted(paths))
    content = path.read_bytes()
    position = dice.randrange(len(content))
    flipped_byte = bytes([content[position] ^ 1])
    damaged = {
        "cut short": content[:position],
        "garbage": b"\xff{" * 99,
        "a bit flips": content[:position] + flipped_byte + content[position + 1 :],
    }
    name = path.name
    if path.parent.name == "records":
        # It has no checksum: a letter that turns into another one goes unnoticed.
        del damaged["a bit flips"]
        name = "a record"
    kind = dice.choice(sorted(damaged))
    path.write_bytes(damaged[kind])
    return f"{name}: {kind}"
