"""What a rewrite must not change, as data in tests/nets/golden: lines of JSON, compared
value by value.

After a wanted change, GOLDEN=write pytest tests/nets writes them anew (in one process);
the diff shows what changed. Lines are sorted, and one belongs to one record, run, cell
or row: what is added only adds lines."""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
WRITES = os.environ.get("GOLDEN") == "write"


def short_hash(value: Any) -> str:
    """12 hex digits of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def rounded(value: Any) -> Any:
    """A value as JSON keeps it: numbers with 12 digits, whole ones without a point, NaN
    as text."""
    if isinstance(value, dict):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if value is None or isinstance(value, str | bool):
        return value
    short = float(f"{value:.12g}")
    return (
        str(short)
        if not math.isfinite(short)
        else int(short)
        if short.is_integer()
        else short
    )


def read_lines(name: str) -> list[dict[str, Any]]:
    """The lines of a golden file; none where there is no file."""
    path = FOLDER / name
    return (
        [json.loads(line) for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


def write_lines(name: str, lines: Iterable[Any]) -> None:
    (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_text(
        "".join(
            f"{json.dumps(line, ensure_ascii=False, separators=(',', ':'))}\n"
            for line in lines
        )
    )


def same_lines(name: str, found: Iterable[dict[str, Any]], **part: str) -> None:
    """Compares lines with a part of a golden file, in order: numbers to 1e-9, all else
    as it is. part: keys and values of every line of that part."""
    made, kept = [part | rounded(line) for line in found], read_lines(name)
    if WRITES:
        others = [line for line in kept if not part.items() <= line.items()]
        write_lines(
            name, sorted([*others, *made], key=lambda line: [line[key] for key in part])
        )
        return
    wanted = [line for line in kept if part.items() <= line.items()]
    texts = [{*map(json.dumps, lines)} for lines in (wanted, made)]
    lost, new = (sorted(texts[i] - texts[1 - i]) for i in (0, 1))
    assert len(made) == len(wanted), (
        f"{name}: {len(wanted)}, now {len(made)}. Lost {lost}, new {new}"[:3000]
    )
    differences = unlike(wanted, made, name, 1e-9)
    assert not differences, (
        f"{len(differences)} other values: {'; '.join(differences[:8])}, of {new}"[
            :3000
        ]
    )


def same_json(name: str, value: dict[str, Any]) -> None:
    """Compares a mapping with a golden file: keys and their order, types, and numbers
    to 1e-5."""
    path = FOLDER / name
    if WRITES:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(
            f"{json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()
        )
        path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    differences = unlike(
        json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(value))
    )
    assert not differences, f"{path} is another: {'; '.join(differences[:5])}"


def unlike(wanted: Any, found: Any, where: str = "", close: float = 1e-5) -> list[str]:
    """Where two values of JSON differ, in words. close: how near two numbers are; at
    1e-5 an integer is no float."""
    numbers = all(
        isinstance(one, int | float) and not isinstance(one, bool)
        for one in (wanted, found)
    )
    if type(wanted) is not type(found) and not (numbers and close < 1e-5):
        return [f"{where}: {wanted!r} was {type(wanted).__name__}, is {found!r}"]
    if isinstance(wanted, dict):
        if list(wanted) != list(found):
            return [f"{where}: keys {list(wanted)}, now {list(found)}"]
        return [
            one
            for key in wanted
            for one in unlike(wanted[key], found[key], f"{where}.{key}", close)
        ]
    if isinstance(wanted, list):
        if len(wanted) != len(found):
            return [f"{where}: {wanted}, now {found}"]
        pairs = enumerate(zip(wanted, found, strict=True))
        return [
            one for i, pair in pairs for one in unlike(*pair, f"{where}[{i}]", close)
        ]
    is_float = numbers and (close < 1e-5 or isinstance(wanted, float))
    alike = (
        math.isclose(wanted, found, rel_tol=close, abs_tol=close)
        if is_float
        else wanted == found
    )
    return [] if alike else [f"{where}: {wanted!r}, now {found!r}"]
