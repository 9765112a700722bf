"""Trainable parameters: counted in a model without weights, by the method's formula, and in the paper.

python -m runs.counts
"""

from typing import Any

import yaml

from runs.command import Common, entry_point, read
from runs.config import CONF, parts
from runs.models import skeleton

COLUMNS = "{:<15}{:<19}{:>8}{:>13}{:>13}{:>13}  {:<9}{}"


def count(entry: dict[str, Any]) -> tuple[int | str, int, int]:
    """The rank (or bottleneck), the exact count and the method's formula of an entry of conf/counts.yaml."""
    import vera

    model_config, settings = parts(entry["model"], entry["method"])
    method, model = vera.make_method(**settings | entry["settings"]), skeleton(model_config, num_labels=2)
    method.adapt(model)
    size = getattr(method, "rank", getattr(method, "bottleneck", "-"))
    return size, sum(p.numel() for p in method.adapter_parameters(model).values()), method.count(model)


class Settings(Common):
    """None of its own."""


def main(arguments: list[str]) -> int:
    read(arguments, Settings)
    entries = yaml.safe_load((CONF / "counts.yaml").read_text())
    wrong = 0
    print(COLUMNS.format("model", "method", "rank", "exact", "formula", "expected", "printed", ""))
    for entry in entries:
        rank, exact, formula = count(entry)
        differs = not exact == formula == entry["count"]
        wrong += differs
        verdict = "DIFFERS" if differs else entry.get("note", "")
        numbers = [f"{n:,}" for n in (exact, formula, entry["count"])]
        values = (entry["model"], entry["method"], rank, *numbers, entry["printed"], verdict)
        print(COLUMNS.format(*values).rstrip())
    print(f"{len(entries)} counts, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    entry_point(main)
