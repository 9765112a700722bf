"""What a move must not change: texts and numbers in tests/nets/golden, compared as they are.

After a wanted change, GOLDEN=write pytest tests/nets writes them anew; the diff shows what changed.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"


def same_text(name: str, text: str) -> None:
    """Compares a text with a golden file, line by line."""
    path = FOLDER / name
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text.splitlines() == path.read_text(encoding="utf-8").splitlines(), f"{path} is another"


def same_json(name: str, value: Any) -> None:
    """Compares a value with a golden file: keys and their order, types, and numbers to 1e-5."""
    path = FOLDER / name
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    differences = list(unlike(json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(value))))
    assert not differences, f"{path} is another: {'; '.join(differences[:5])}"


def unlike(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Where two values of JSON differ, in words."""
    if type(wanted) is not type(found):
        return [f"{where}: {wanted!r} was {type(wanted).__name__}, is {found!r}"]
    if isinstance(wanted, dict):
        if list(wanted) != list(found):
            return [f"{where}: keys {list(wanted)}, now {list(found)}"]
        return [one for key in wanted for one in unlike(wanted[key], found[key], f"{where}.{key}")]
    if isinstance(wanted, list):
        if len(wanted) != len(found):
            return [f"{where}: {len(wanted)} items, now {len(found)}"]
        return [
            one
            for i, pair in enumerate(zip(wanted, found, strict=True))
            for one in unlike(*pair, f"{where}[{i}]")
        ]
    alike = (
        math.isclose(wanted, found, rel_tol=1e-5, abs_tol=1e-5)
        if isinstance(wanted, float)
        else wanted == found
    )
    return [] if alike else [f"{where}: {wanted!r}, now {found!r}"]
