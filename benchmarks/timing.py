"""Pieces of work in interleaved rounds, and their times as tables of ratios."""

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

Row = dict[str, Any]


def interleaved(
    work: Mapping[str, Callable[[], Any]], rounds: int, about: Row, reference: str = "", warm_up: int = 1
) -> list[Row]:
    """The seconds of each piece of work, and in each round its ratio to those of `reference` (the first
    piece). The pieces take turns, so that a slow minute of the machine hits all alike; the first `warm_up`
    rounds do not count. A piece that returns a float has measured its own seconds. about: the rest of a row.
    """
    names, seconds = list(work), dict[str, list[float]]()
    for turn in tqdm(range(rounds + warm_up), str(about["part"]), leave=False, disable=None):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            taken = work[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if not isinstance(taken, float):
                taken = time.perf_counter() - started
            if turn >= warm_up:
                seconds.setdefault(name, []).append(taken)
    beside = seconds[reference or names[0]]
    return [
        about
        | {"variant": name, "seconds": seconds[name]}
        | {"ratios": [a / b for a, b in zip(seconds[name], beside, strict=True)]}
        for name in names
    ]


def markdown(rows: list[Row]) -> str:
    """A table for each part: what a row is about, then the minimum and median of its times, and the median,
    lowest and highest ratio of a round; bytes as they are."""
    tables = []
    for _, of_part in groupby(rows, lambda row: row["part"]):
        lines = [*map(_line, of_part)]
        head = [*dict.fromkeys(name for line in lines for name in line)]
        rule = ["---" if name in ("model", "variant") else "---:" for name in head]
        cells = [head, rule, *([line.get(name, "-") for name in head] for line in lines)]
        tables.append("\n".join("| " + " | ".join(line) + " |" for line in cells))
    return "\n\n".join(tables)


def _line(row: Row) -> dict[str, str]:
    """The cells of a row, by their column."""
    about = {name: value for name, value in row.items() if name not in ("part", "seconds", "ratios")}
    line = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in about.items()}
    if seconds := row.get("seconds"):
        line |= {"least": f"{min(seconds):.3g} s", "median": f"{statistics.median(seconds):.3g} s"}
    if ratios := row.get("ratios"):
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        line |= {"ratio": f"{statistics.median(ratios):.2f}", "of a round": spread}
    return line
