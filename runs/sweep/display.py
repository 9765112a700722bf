"""What a sweep shows while it runs."""

import statistics
import sys
import time
from typing import Any

from tqdm import tqdm

from runs.config import Run
from runs.errors import rank
from runs.record import Metric, Record, row_label
from runs.record.text import duration, plural
from runs.sources import changed_words

Event = dict[str, Any]

#: Off a terminal, seconds until a run's first line and between later ones, where no epoch ends before.
FIRST_LINE, LINES = 30.0, 60.0


class Display:
    """One line for the run that is on: a live bar on a terminal, elsewhere a line for each epoch, and a
    short one a minute."""

    def __init__(self, total: int, name_task: bool) -> None:
        self.total, self.name_task = total, name_task
        self.live = sys.stderr.isatty() and not rank()
        self.bar: Any = None
        self.head = ""
        # Seconds for the runs after this one, and how many of them are not in it
        self.later, self.unknown = 0.0, 0
        # When a line is to be written, whatever the run is at: a log should show that it goes on
        self.due = time.monotonic() + FIRST_LINE
        self.latest: Event = {"phase": "starting"}

    def start(self, position: int, run: Run, words: str = "") -> None:
        """The run that lines are about now. words: what tells it from others of the same row and task."""
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
        """Off a terminal, a short line about the last event, if a minute has passed without a line."""
        if self.live or time.monotonic() < self.due:
            return
        event = self.latest
        self._log(
            "  ".join(self._where(event)) if "steps" in event else f"{event['phase']}{self._count(event)}"
        )

    def _log(self, words: str) -> None:
        print(f"{self.head}  {words}".strip(), flush=True)
        self.due = time.monotonic() + LINES

    def _open_bar(self, total: int) -> None:
        if self.bar is None:
            # The words go where tqdm's unit stands: before a postfix it would put a comma.
            look: Any = {"bar_format": "{desc}  {bar:12}  {unit}", "ascii": " -#", "unit": ""}
            self.bar = tqdm(total=total, leave=False, dynamic_ncols=True, **look)

    def _bar(self, event: Event) -> None:
        self._open_bar(1)
        if "steps" in event:
            self.bar.total, self.bar.n = event["steps"], event["step"]
            epoch, _, self.bar.unit = self._words(event).partition("  ")
            self.bar.set_description_str(f"{self.head}  {epoch}")
        elif "of" in event:
            self.bar.total, self.bar.n = event["of"], event["done"]
            self.bar.unit = self._count(event).strip()
            self.bar.set_description_str(f"{self.head}  {event['phase']}")
        else:
            self.bar.set_description_str(f"{self.head}  {event['phase']}")

    @staticmethod
    def _count(event: Event) -> str:
        """How many of an event's items are done, and the time that the others take."""
        if "of" not in event:
            return ""
        left = event["seconds_left"]
        return f" {event['done']}/{event['of']}" + (f"  left: {duration(left)}" if left is not None else "")

    def _where(self, event: Event) -> list[str]:
        """How far training is, and the time that is left."""
        texts = f" and {event['texts']} texts" if event.get("texts") else ""
        more = f" and {plural(self.unknown, 'run')} not timed yet" if self.unknown else ""
        known = self.later or not self.unknown
        all_ = f", all {duration(event['seconds_left'] + self.later)}{more}" if known and not texts else ""
        step = [f"step {event['step']}/{event['steps']}"] * (event["phase"] == "training" and not self.live)
        left = f"left: run {duration(event['seconds_left'])}{texts}{all_}"
        return [f"epoch {event['epoch']}/{event['epochs']}", *step, left]

    def _words(self, event: Event) -> str:
        *words, left = self._where(event)
        words += [f"loss {event['loss']:.3f}"]
        if event["metric"] is not None:
            now, best = (
                Metric(event["metric_name"], scale=event["scale"]).text(event[which])
                for which in ("metric", "best")
            )
            words.append(f"dev {event['metric_name']} {now} (best {best})")
        pace, unit = event["pace"], event["unit"]
        words.append(f"{pace / 1000:.1f}k {unit}/s" if pace >= 1000 else f"{pace:.{pace < 10:d}f} {unit}/s")
        return "  ".join([*words, left])

    def skipped(self, record: Record) -> None:
        """The line of a run that has its record already."""
        words = f"already done ({result_words(record)}, run {record['id']}), skipped"
        self.line(": ".join(filter(None, [words, changed_words(record)])))

    def done(self, record: Record, seconds: float) -> None:
        """The line of a run that was done now. seconds: what it took, all in all."""
        self.line(f"{result_words(record)}  {duration(seconds)}  run {record['id']}")

    def line(self, text: str) -> None:
        """A line about the run that is on."""
        self.close()
        self._log(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Board(Display):
    """A line for each run that ends, whoever does it, and one about all of them: live on a terminal,
    elsewhere once a minute."""

    def say(self, text: str) -> None:
        """A line of its own."""
        self.close()
        print(text, flush=True)
        self.due = time.monotonic() + LINES

    def skipped(self, record: Record) -> None:
        """Of those that are done already the number is told, and who has changed since."""
        if changed_words(record):
            super().skipped(record)

    def done(self, record: Record, seconds: float) -> None:
        """With the time that the record knows of: whoever did the run began at another time than this one."""
        known = sum(record["cost"].get(f"{part}_seconds", 0.0) for part in ("train", "evaluate", "decode"))
        super().done(record, known)

    def state(self, left: int, running: list[dict[str, Any]], executors: int) -> None:
        """How many runs are left, the last event of those that are on, and how many executors do them."""
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


def result_words(record: Record) -> str:
    """A record's result in a few words."""
    result = record["result"]
    if record["status"] == "diverged":
        return f"diverged: {record['error']}"
    best, last = (Metric.of_record(record).text(result[which]) for which in ("best", "last"))
    words = f"{result['metric']} {best} at epoch {result['best_epoch']:.3g}, last {last}"
    # Of the last epoch, by the protocol
    scores = record["texts"]["scores"][0] if record.get("texts") else None
    return f"{words}, BLEU {scores['bleu']:.1f} on {record['texts']['split']}" if scores else words


def estimate(left: list[Run], spent: list[tuple[Run, float]]) -> tuple[float, int]:
    """Seconds for the runs that are left, and how many of them no finished run says anything of.

    Each takes the median of its row on its task, or of the other rows there. A head alone goes over features
    that are computed once, and a model as it is goes through no training: their times say nothing of other
    rows, nor those of theirs."""
    seconds, unknown = 0.0, 0
    for run in left:
        same = [(done, time_) for done, time_ in spent if (done.model, done.task) == (run.model, run.task)]
        known = [time_ for done, time_ in same if done.row == run.row]
        known = known or [
            time_ for done, time_ in same if not {done.method["kind"], run.method["kind"]} & {"head", "none"}
        ]
        seconds, unknown = (seconds + statistics.median(known), unknown) if known else (seconds, unknown + 1)
    return seconds, unknown
