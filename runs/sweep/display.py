"""What a command shows while runs are on: a live line for each on a terminal, a plain line a minute
elsewhere, and a line that stays for each run that ends."""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runs.errors import rank
from runs.record import Metric, Record, one_class, read_regular, run_folder
from runs.record.text import duration
from runs.run import Run
from runs.sources import changed_words

#: The last event of a run's training: phase, epoch, metric, seconds_left ...
Event = Mapping[str, Any]
#: Without a terminal: the most seconds until the first line and between later ones.
FIRST_LINE, LINES = 30.0, 60.0


class Display:
    """Shows a command's runs. brief: of runs that were done before it names only those that would differ
    now."""

    def __init__(self, total: int, brief: bool = False) -> None:
        self.total, self.brief = total, brief
        self.live = sys.stderr.isatty() and not rank()
        self.due = time.monotonic() + FIRST_LINE
        self._drawn = 0  # live lines on the screen

    def show(self, running: Sequence[tuple[str, Event]], left: int = 1) -> None:
        """Shows the runs that are on: the beginning of each one's lines, and its last event. left: how many
        have not ended."""
        if self.live:
            self._draw([f"{head}  {words(event)}" for head, event in running])
        elif time.monotonic() >= self.due and running:
            if len(running) == 1:
                self.line(f"{running[0][0]}  {words(running[0][1])}")
            else:
                longest = max(event.get("seconds_left") or 0 for _, event in running)
                last = f", the longest of them: {duration(longest)}" if longest else ""
                self.line(f"[{self.total - left}/{self.total}] {len(running)} runs are on{last}")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._draw([])
        print(text, flush=True)
        self.due = time.monotonic() + LINES

    def close(self) -> None:
        """Removes the live lines."""
        self._draw([])

    def _draw(self, lines: list[str]) -> None:
        """Replaces the live lines."""
        if not (lines or self._drawn):
            return
        width = shutil.get_terminal_size().columns - 1
        up = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        print(
            up + "\x1b[J" + "".join(f"{line[:width]}\n" for line in lines),
            end="",
            file=sys.stderr,
            flush=True,
        )
        self._drawn = len(lines)


def read_progress(output: str | Path, run_id: str) -> dict[str, Any]:
    """The last event of a run's training; empty where there is none, or none that can be shown."""
    try:
        event: dict[str, Any] = json.loads(read_regular(run_folder(output, run_id) / "progress.json", 2**20))
        words(event)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return {}
    return event if "phase" in event else {}


def head(position: int, total: int, name: str) -> str:
    """How the lines of a run begin: its number, and its name."""
    return f"[{position:>{len(str(total))}}/{total}] {name}"


def words(event: Event) -> str:
    """An event: where the run stands, its loss and metric, its pace and the time that is left."""
    phase, left = event.get("phase", "starting"), event.get("seconds_left")
    parts = [phase if phase != "training" else ""]
    if "of" in event:
        parts[0] += f" {event['done']}/{event['of']}"
    if "steps" in event:
        parts += [f"epoch {event['epoch']}/{event['epochs']}", f"step {event['step']}/{event['steps']}"]
        parts += [f"loss {event['loss']:.3f}"]
        if event["metric"] is not None:
            parts.append(f"dev {metric_words(event)}")
        pace, unit = event["pace"], event["unit"]
        parts.append(f"{pace / 1000:.1f}k {unit}/s" if pace >= 1000 else f"{pace:.{pace < 10:d}f} {unit}/s")
    if left is not None:
        texts = f" and {event['texts']} texts" if event.get("texts") and "of" not in event else ""
        parts.append(f"left: {duration(left)}{texts}")
    return "  ".join(filter(None, parts))


def metric_words(event: Event) -> str:
    """The metric of an event that has one, now and at its best."""
    metric = Metric(event["metric_name"], scale=event["scale"])
    return f"{metric.name} {metric.text(event['metric'])} (best {metric.text(event['best'])})"


def differs(record: Record, run: Run) -> list[str]:
    """What is not as it would be if a finished run were done now: sources, and the adapter on disk."""
    found = [*filter(None, [changed_words(record), kept_words(record, run)])]
    return [*found, "redo=true runs it again"] if found else []


def kept_words(record: Record, run: Run) -> str:
    """How a finished run kept its adapter, where the command asks for another; empty if that is there."""
    if record["status"] != "done" or run.config["keep"] == "none":
        return ""
    # Records of old versions have no adapter_precision
    had, asked = {"adapter_precision": "fp32"} | record["config"], run.config
    keep, last = had["keep"], record["curve"]["epoch"][-1]
    there = keep in (asked["keep"], "both")
    if keep != "none" and asked["keep"] != "both":
        there |= record["result"]["best_epoch"] == last  # best and last are one
    keys = [] if there else ["keep"]
    if keep != "none" and had["adapter_precision"] != asked["adapter_precision"]:
        keys.append("adapter_precision")
    words = (f"{key}={had[key]} (not {asked[key]})" for key in keys)
    return f"its adapter was kept with {' and '.join(words)}" if keys else ""


def result_words(record: Record) -> str:
    """A record's result in a few words."""
    result = record["result"]
    if record["status"] == "diverged":
        return f"diverged: {record['error']}"
    best, last = (Metric.of_record(record).text(result[which]) for which in ("best", "last"))
    words = f"{result['metric']} {best} at epoch {result['best_epoch']:.3g}, last {last}"
    if (share := one_class(record)) is not None:
        words += f", predicts one class{f' ({share})' if share else ''}"
    # Of the last epoch, by the protocol
    scores = record["texts"]["scores"][0] if record.get("texts") else None
    return f"{words}, BLEU {scores['bleu']:.1f} on {record['texts']['split']}" if scores else words
