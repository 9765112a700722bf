"""Lines and bars on the screen while a sweep runs."""

import statistics
import sys
import time
from typing import Any

from tqdm import tqdm

from runs.errors import rank
from runs.record import Metric, Record, one_class, row_label
from runs.record.text import duration, plural
from runs.run import UNLIKE_OTHERS, Run
from runs.sources import changed_words
from runs.sweep.progress import metric_words

Event = dict[str, Any]

#: Without a terminal: the most seconds until a run's first line and between later ones.
FIRST_LINE, LINES = 30.0, 60.0


class Display:
    """Shows the current run: on a terminal a live bar, elsewhere a line for each epoch and a short one each
    minute."""

    def __init__(self, total: int, name_task: bool) -> None:
        self.total, self.name_task = total, name_task
        self.live = sys.stderr.isatty() and not rank()
        self.bar: Any = None
        self.head = ""
        # Seconds for the runs after this one, and the number of runs without an estimate
        self.later, self.unknown = 0.0, 0
        # When a line is due although nothing has happened: a log should show that the run is alive
        self.due = time.monotonic() + FIRST_LINE
        self.latest: Event = {"phase": "starting"}

    def start(self, position: int, run: Run, words: str = "") -> None:
        """Makes a run the current one. words: those that distinguish it from others of its row and task."""
        width = len(str(self.total))
        task = f"{run.config['task']['label']} " if self.name_task else ""
        name = f"{task}{row_label(run.config)}{' ' * bool(words)}{words} seed {run.seed}"
        self.head = f"[{position:>{width}}/{self.total}] {name}"
        self.due, self.latest = time.monotonic() + FIRST_LINE, {"phase": "starting"}

    def show(self, event: Event) -> None:
        """Shows an event of the run: on the live bar, or as a line if it is a milestone or a line is due."""
        self.latest = event
        if self.live:
            self._bar(event)
        elif event["phase"] == "evaluated":
            self._log(self._words(event))
        elif event["phase"].startswith("resuming") or event.get("milestone"):
            self._log(f"{event['phase']}{self._count(event)}")
        else:
            self.remind()

    def remind(self) -> None:
        """Without a terminal, a short line on the last event, if a minute has passed without a line."""
        if self.live or time.monotonic() < self.due:
            return
        event = self.latest
        phase = f"{event['phase']}{self._count(event)}"
        self._log("  ".join(self._position(event)) if "steps" in event else phase)

    def _log(self, words: str) -> None:
        print(f"{self.head}  {words}".strip(), flush=True)
        self.due = time.monotonic() + LINES

    def _open_bar(self, total: int) -> None:
        if self.bar is None:
            # Our words replace tqdm's unit: it would put a comma before a postfix
            style: Any = {"bar_format": "{desc}  {bar:12}  {unit}", "ascii": " -#", "unit": ""}
            self.bar = tqdm(total=total, leave=False, dynamic_ncols=True, **style)

    def _bar(self, event: Event) -> None:
        self._open_bar(1)
        title = event["phase"]
        if "steps" in event:
            self.bar.total, self.bar.n = event["steps"], event["step"]
            title, _, self.bar.unit = self._words(event).partition("  ")
        elif "of" in event:
            self.bar.total, self.bar.n = event["of"], event["done"]
            self.bar.unit = self._count(event).strip()
        self.bar.set_description_str(f"{self.head}  {title}")

    @staticmethod
    def _count(event: Event) -> str:
        """The number of an event's items that are done, and the time that the others take."""
        if "of" not in event:
            return ""
        left = event["seconds_left"]
        return f" {event['done']}/{event['of']}" + (f"  left: {duration(left)}" if left is not None else "")

    def _position(self, event: Event) -> list[str]:
        """The epoch and step of training, and the time that is left."""
        texts = f" and {event['texts']} texts" if event.get("texts") else ""
        more = f" and {plural(self.unknown, 'run')} not timed yet" if self.unknown else ""
        known = self.later or not self.unknown
        all_ = f", all {duration(event['seconds_left'] + self.later)}{more}" if known and not texts else ""
        step = [f"step {event['step']}/{event['steps']}"] * (event["phase"] == "training" and not self.live)
        left = f"left: run {duration(event['seconds_left'])}{texts}{all_}"
        return [f"epoch {event['epoch']}/{event['epochs']}", *step, left]

    def _words(self, event: Event) -> str:
        """All about an event of training: position, loss, metric, pace and time."""
        *words, left = self._position(event)
        words += [f"loss {event['loss']:.3f}"]
        if event["metric"] is not None:
            words.append(f"dev {metric_words(event)}")
        pace, unit = event["pace"], event["unit"]
        words.append(f"{pace / 1000:.1f}k {unit}/s" if pace >= 1000 else f"{pace:.{pace < 10:d}f} {unit}/s")
        return "  ".join([*words, left])

    def skipped(self, record: Record, run: Run) -> None:
        """The line of a run that had a record before."""
        words = f"already done ({result_words(record)}, run {record['id']}), skipped"
        self.line(": ".join(filter(None, [words, "; ".join(self._differs(record, run))])))

    @staticmethod
    def _differs(record: Record, run: Run) -> list[str]:
        """What is not as it would be if the run were done now: sources, and the adapter on disk."""
        words = [changed_words(record), kept_words(record, run)]
        return [*filter(None, words), "redo=true runs it again"] if any(words) else []

    def done(self, record: Record, seconds: float) -> None:
        """The line of a run that was done now. seconds: from its start to its end."""
        self.line(f"{result_words(record)}  {duration(seconds)}  run {record['id']}")

    def line(self, text: str) -> None:
        """A line on the current run."""
        self.close()
        self._log(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Board(Display):
    """Shows the runs of all executors: a line for each that ends, and one on the others, live on a terminal
    and once a minute elsewhere."""

    def say(self, text: str) -> None:
        """A line without a run."""
        self.close()
        print(text, flush=True)
        self.due = time.monotonic() + LINES

    def skipped(self, record: Record, run: Run) -> None:
        """A line for each run that would differ now. The number of the others is shown anyway."""
        if self._differs(record, run):
            super().skipped(record, run)

    def done(self, record: Record, seconds: float) -> None:
        """With the time in the record: this command does not know when the run's executor began."""
        parts = ("train", "evaluate", "decode")
        super().done(record, sum(record["cost"].get(f"{part}_seconds", 0.0) for part in parts))

    def state(self, left: int, running: list[dict[str, Any]], executors: int) -> None:
        """Shows how many runs are left and running. running: the last event of each."""
        longest = max((event.get("seconds_left") or 0.0 for event in running), default=0.0)
        last = f"  the longest of them: {duration(longest)}" if longest else ""
        words = f"{len(running)} running on {plural(executors, 'executor')}{last}"
        if not self.live:
            self.head = f"[{self.total - left}/{self.total}]"
            self.latest = {"phase": words}
            self.remind()
            return
        self._open_bar(self.total)
        self.bar.n, self.bar.unit = self.total - left, words
        self.bar.set_description_str(f"[{self.total - left}/{self.total}]")


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


def estimate(left: list[Run], spent: list[tuple[Run, float]]) -> tuple[float, int]:
    """Seconds for the runs that are left, and the number of runs without an estimate.

    spent: finished runs with their seconds. A run takes the median of its row on its task, or else of the
    other rows there."""
    total, unknown = 0.0, 0
    for run in left:
        same = [
            (done, seconds)
            for done, seconds in spent
            if (done.model, done.task) == (run.model, run.task)
            and (done.row == run.row or not {done.method["kind"], run.method["kind"]} & UNLIKE_OTHERS)
        ]
        of_row = [seconds for done, seconds in same if done.row == run.row]
        known = of_row or [seconds for _, seconds in same]
        if known:
            total += statistics.median(known)
        else:
            unknown += 1
    return total, unknown
