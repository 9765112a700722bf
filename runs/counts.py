"""Trainable parameters: counted in a model without weights, by the method's formula,
and in the paper.

python -m runs.counts
"""

from typing import Any

import pandas as pd

from runs.command.parser import Common, entry_point, read
from runs.config import parts
from runs.models import skeleton
from runs.record.ledger import in_conf


def count(entry: dict[str, Any]) -> tuple[int | str, int, int]:
    """The rank (or bottleneck), the exact count and the method's formula of an entry of
    conf/counts.yaml."""
    import vera

    model_config, settings = parts(entry["model"], entry["method"])
    method, model = (
        vera.make_method(**settings | entry["settings"]),
        skeleton(model_config, num_labels=2),
    )
    method.adapt(model)
    size = getattr(method, "rank", getattr(method, "bottleneck", "-"))
    return (
        size,
        sum(p.numel() for p in method.adapter_parameters(model).values()),
        method.count(model),
    )


def main(arguments: list[str]) -> int:
    read(arguments, Common, module=__name__)
    entries = in_conf("counts.yaml")
    frame = pd.DataFrame(entries).rename(columns={"count": "expected"})
    frame[["rank", "exact", "formula"]] = [count(entry) for entry in entries]
    wrong = (frame.exact != frame.formula) | (frame.exact != frame.expected)
    frame["verdict"] = frame.note.fillna("").mask(wrong, "DIFFERS")
    numbers = ["exact", "formula", "expected"]
    columns = ["model", "method", "rank", *numbers, "printed", "verdict"]
    print(
        frame.to_string(
            columns=columns,
            index=False,
            formatters=dict.fromkeys(numbers, "{:,}".format),
        )
    )
    print(f"{len(frame)} counts, {wrong.sum()} wrong")
    return 1 if wrong.any() else 0


if __name__ == "__main__":
    entry_point(main)
