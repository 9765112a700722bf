"""What a command shows of its runs. While they run, a terminal has a live line for
each, and any other output gets a plain line every minute, with the time that is left.
For each run that ends, a line stays."""

import errno
import json
import math
import os
import shutil
import stat
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from statistics import mean
from typing import Any, TextIO

from tqdm import tqdm

from runs.command.errors import process_rank
from runs.record.cell import ReportedMetric, kept_epoch, key_of_text_score, text_score
from runs.record.collapse import one_class_score
from runs.record.ledger import read_regular, run_folder
from runs.record.schema import TEXT_SCORES, Record
from runs.record.spreadsheet import read_own_csv
from runs.record.text import count_problem, duration, one_line, plural, printable
from runs.run.definition import Run

#: The last event of a run's training, from its progress.json: phase, epoch, metric,
#: seconds_left and so on (runs.training.train.Reporter). Empty before the first one.
Event = Mapping[str, Any]
#: Without a terminal: the seconds until the first line, and between later ones.
FIRST_LINE_S = 10.0
LINE_INTERVAL_S = 60.0
#: The columns of a run's bar.
BAR_WIDTH = 12
#: What a plan and the end of a sweep say of runs that train.max_steps limits.
SHORTENED = (
    "stopped early by train.max_steps: in no table "
    "(train.epochs=1 makes a short run that tables show)"
)


@dataclass(frozen=True)
class SweepState:
    """How far a sweep is: how many of all its runs have ended. words: the same as text,
    with the time that is left."""

    ended: int
    total: int
    words: str


class Display:
    """Shows running runs, and lines that stay. A run's lines begin with its head (see
    `heads`), which stands for the run here.

    live: whether lines on a terminal are drawn again and again; of torchrun's processes
    the first alone does so. due: otherwise, when the next line of a running run is due,
    by time.monotonic."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and not process_rank()
        self.due = time.monotonic() + FIRST_LINE_S
        self._drawn_lines = 0  # how many live lines are on the screen
        self._warned: set[str] = set()  # the heads of runs whose problems were shown
        self._begun: set[str] = set()  # the heads of runs that have had an event

    def show(
        self, running: Sequence[tuple[str, Event]], sweep: SweepState | None = None
    ) -> None:
        """Shows the running runs: on a terminal all of them, elsewhere the first if a
        line is due. running: the head and last event of each; without any, the live lines
        are removed. sweep: how far the sweep is, if it has several runs."""
        for head, event in running:
            # notes from the start of training (Training.problems), shown once
            if event.get("problems") and head not in self._warned:
                self._warned.add(head)
                for problem in event["problems"]:
                    self._print(f"{head}  note: {problem}")
        stages = [(head, self._stage(head, event)) for head, event in running]
        if self.live:
            lines = [
                f"{head}  {bar(event)}{event_words(event)}" for head, event in stages
            ]
            if sweep and lines:
                lines.insert(0, sweep_bar(sweep))
            self._draw(lines)
        elif time.monotonic() >= self.due and stages:
            head, event = stages[0]
            line = f"{head}  {event_words(event)}"
            if len(stages) > 1:
                line += f"  and {plural(len(stages) - 1, 'other')}"
            if sweep:
                line += f"  ({sweep.words})"
            self._print(line)

    def started(self, head: str) -> None:
        """Prints a line for a run that starts, except on a terminal, whose live lines show
        it anyway."""
        if not self.live:
            self.line(f"{head}  starts")

    def _stage(self, head: str, event: Event) -> Event:
        """The event to show for a run. A run that has had events and has none any more is
        about to end: its files, and progress.json with them, are being moved."""
        if event:
            self._begun.add(head)
        elif head in self._begun:
            return {"phase": "writing the record"}
        return event

    def line(self, text: str) -> None:
        """Prints a line that stays, such as of a run that has ended, or is tried again.
        If it begins with a run's head, the run's next event counts as its first: a run
        that is tried again has none for a while, but is not about to end (`_stage`)."""
        self._begun = {head for head in self._begun if not text.startswith(head)}
        self._print(text)

    def _print(self, text: str) -> None:
        """Prints a line in the place of the live lines, which `show` draws again."""
        self._draw([])
        _show(text + "\n", sys.stdout)
        self.due = time.monotonic() + LINE_INTERVAL_S

    def _draw(self, lines: list[str]) -> None:
        """Replaces the live lines by these."""
        if not lines and not self._drawn_lines:
            return
        width = shutil.get_terminal_size().columns - 1
        # At [nA a terminal moves up n lines, and at [J it clears what is below
        to_first_line = f"\x1b[{self._drawn_lines}A\r" if self._drawn_lines else ""
        text = "".join(f"{line[:width]}\n" for line in lines)
        _show(f"{to_first_line}\x1b[J{text}", sys.stderr)
        self._drawn_lines = len(lines)


def _show(text: str, stream: TextIO) -> None:
    """Writes to a stream at once. If its terminal has just closed, the text is lost:
    SIGHUP comes in a moment, and lets the runs save."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        leave_terminal()


def leave_terminal() -> None:
    """Redirects output from a closed terminal to /dev/null. Otherwise an error of writing
    would end the command before its runs have saved."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # stdout and stderr
        # A file or pipe stays open: only a terminal is a character device
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(null_device, stream)
    os.close(null_device)


def bar(event: Event) -> str:
    """The bar of a run that is training, with two spaces after it; "" for other events."""
    steps = event.get("steps")
    if not steps:
        return ""
    drawn = tqdm.format_meter(
        event["step"], steps, 0, ncols=BAR_WIDTH, bar_format="{bar}", ascii=" #"
    )
    return f"[{drawn}]  "


def sweep_bar(sweep: SweepState) -> str:
    """The bar of a whole sweep, with the time that is left."""
    drawn = tqdm.format_meter(
        sweep.ended, sweep.total, 0, ncols=2 * BAR_WIDTH, bar_format="{bar}", ascii=" #"
    )
    return f"[{drawn}]  {sweep.words}"


def heads(names: Sequence[str]) -> list[str]:
    """How the lines of each run begin: its number among all, and its name. For two runs
    a and b: "[1/2] a" and "[2/2] b"."""
    width = len(str(len(names)))
    return [
        f"[{number:>{width}}/{len(names)}] {name}"
        for number, name in enumerate(names, 1)
    ]


def read_progress(output: str | Path, run_id: str) -> dict[str, Any]:
    """The last event of a run's training; empty if there is none that can be shown."""
    try:
        path = run_folder(output, run_id) / "progress.json"
        event = dict(json.loads(read_regular(path, 2**20)))
        # Tried here, since another version of the code may have written the event
        event_words(event)
        bar(event)
    except (
        ArithmeticError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return {}
    return event if "phase" in event else {}


def event_words(event: Event) -> str:
    """An event in words: the phase, unless it is training, and the epoch; the time that
    is left; step, loss and metric; the pace; and the host of a run on another machine.
    The pace comes late because it does not fit into 80 columns."""
    phase = event.get("phase", "starting")
    seconds_left = event.get("seconds_left")
    position = [phase if phase != "training" else ""]
    if "of" in event:  # a phase that counts its items, such as decoding
        position = [f"{position[0]} {event['done']}/{event['of']}"]
    details = list[str]()
    if "steps" in event:
        position.append(f"epoch {event['epoch']}/{event['epochs']}")
        details.append(f"step {event['step']}/{event['steps']}")
        details.append(f"loss {event['loss']:.3f}")
        if event.get("metrics"):
            details.append(reward_words(event["metrics"]))
        if event["metric"] is not None:
            metric = ReportedMetric(event["metric_name"], scale=event["scale"])
            score = metric.text(event["metric"])
            best = metric.text(event["best"])
            details.append(f"dev {metric.name} {score} (best {best})")
        pace = event["pace"]
        decimals = 1 if pace < 10 else 0
        details.append(f"{pace:.{decimals}f} {event['unit']}/s")
    remaining = ""
    if seconds_left is not None:
        remaining = f"left: {duration(seconds_left)}"
        # in training these seconds leave out the texts that are decoded afterwards
        if event.get("texts") and "of" not in event:
            remaining += f" and {event['texts']} texts"
    if event.get("host", gethostname()) != gethostname():
        details.append(f"on {event['host']}")
    return "  ".join(filter(None, [*position, remaining, *details]))


def reward_words(metrics: Mapping[str, float]) -> str:
    """What the last step of a run by reward has measured, in words. metrics: by TRL's
    names. A prompt has a signal if its completions have different rewards."""
    percent_with_signal = 100 * (1 - metrics["frac_reward_zero_std"])
    length = metrics["completions/mean_length"]
    return (
        f"reward {metrics['reward']:.3f} ({percent_with_signal:.0f}% with a signal, "
        f"{length:.1f} tokens, entropy {metrics['entropy']:.2f})"
    )


def result_words(record: Record, output: str | Path | None = None) -> str:
    """The result of a finished record in a few words. output: the folder with its run's
    files; if it is given and the run predicts one class, the words say which."""
    result = record["result"]
    if record["status"] == "diverged":
        return f"diverged: {record['error']}"
    best = _score_text(record, "best", result["best"])
    last = _score_text(record, "last", result["last"])
    epoch = result["best_epoch"]
    text = f"{result['metric']} {best} at epoch {epoch:.3g}, last {last}"
    text += _words_on_one_class(record, output)
    parameters = record["parameters"]
    # what the method says that it trains; older records lack it
    formula = parameters.get("formula", parameters["adapter"])
    if formula != parameters["adapter"]:
        text += f", {count_problem(formula, parameters['adapter'])}"
    key = key_of_text_score(record)
    texts = record.get("texts")
    if key and texts:
        score = TEXT_SCORES[key]
        value = text_score(record, key) or 0.0  # never None: the texts have this score
        number = f"{value:.{score.decimals}f}{score.unit}"
        text += f", {score.name} {number} on {texts['split']}"
    return text


def _words_on_one_class(record: Record, output: str | Path | None) -> str:
    """For a run that predicts one class for every dev row: which class, if `output` is
    given, and the share of the rows that have it, which is the run's accuracy. With
    another metric than the accuracy (a score of NaN) the share is not known. "" for
    other runs."""
    score = one_class_score(record)
    if score is None:
        return ""
    name = "one class"
    if output:
        name = _only_prediction(run_folder(output, record["id"])) or name
    words = f", predicts {name} for every row"
    if not math.isnan(score):
        words += f" ({ReportedMetric.of_record(record).text(score)}% of dev)"
    return words


def _only_prediction(folder: Path) -> str:
    """The class that a run's predictions.csv has in all rows, quoted. "" if it has
    several, because it is of another epoch than the score in tables, or if there is no
    such file."""
    try:
        rows = read_own_csv(folder / "predictions.csv")
        (name,) = {row["predicted"] for row in rows}  # or ValueError for several
    except (OSError, ValueError, LookupError):
        return ""
    return repr(one_line(printable(name)))


def _score_text(record: Record, epoch: str, score: float | None) -> str:
    """A score as text, and whether the adapter or the predictions of its epoch are kept.
    epoch: the one with the score, best or last. score: None where the run has none."""
    text = "-" if score is None else ReportedMetric.of_record(record).text(score)
    keep = record["config"]["keep"]
    is_kept = epoch == kept_epoch(keep, record["result"]["reported"])
    if keep == "both" or (keep != "none" and is_kept):
        return f"{text} (kept)"
    # only a model with a head writes predictions.csv
    has_predictions = record["parameters"]["head"] > 0
    if keep == "none" and is_kept and has_predictions:
        return f"{text} (predictions kept)"
    return text


# --- how long a sweep still takes


#: The row (a method with its settings), model and task of runs that take about as long
#: as each other.
DurationKey = tuple[str, str, str]


def duration_key(run: Run) -> DurationKey:
    """The row, model and task of a run."""
    return run.row, run.model, run.task


@dataclass(frozen=True)
class RunningRun:
    """A running run. elapsed: the seconds that it has taken so far, over all attempts.
    seconds_left: those that it still expects to take; None if it does not know yet."""

    run: Run
    elapsed: float
    seconds_left: float | None


class TimeLeft:
    """Estimates how long a sweep still takes, from how long its ended runs took."""

    def __init__(self) -> None:
        self._durations = defaultdict[DurationKey, list[float]](list)

    def add(self, run: Run, seconds: float) -> None:
        """Takes a run that has ended, and how long it took, into account."""
        self._durations[duration_key(run)].append(seconds)

    def of_sweep(
        self, waiting: Iterable[Run], running: Sequence[RunningRun]
    ) -> float | None:
        """The seconds until all runs have ended, if as many run at once as now. None
        while no run has ended or knows how long it takes."""
        durations = {key: [*values] for key, values in self._durations.items()}
        for entry in running:
            if entry.seconds_left is not None:
                seconds = entry.elapsed + entry.seconds_left
                durations.setdefault(duration_key(entry.run), []).append(seconds)
        if not durations:
            return None
        remaining = [self._remaining_seconds(entry, durations) for entry in running]
        total = sum(remaining) + sum(_expected(run, durations) for run in waiting)
        # As if every slot took an equal part, but no less than the slowest running run
        return max([total / max(len(running), 1), *remaining])

    def _remaining_seconds(
        self, entry: RunningRun, durations: Mapping[DurationKey, Sequence[float]]
    ) -> float:
        """What a running run says or, while it does not, what runs like it took minus
        what it has taken."""
        if entry.seconds_left is not None:
            return entry.seconds_left
        return max(_expected(entry.run, durations) - entry.elapsed, 0.0)


def _expected(run: Run, durations: Mapping[DurationKey, Sequence[float]]) -> float:
    """The expected duration of a run: the mean over runs of its row, model and task;
    without any, over those of its model and task; without any, over all."""
    similar: list[float] = [*durations.get(duration_key(run), ())]
    if not similar:
        for (_, model, task), values in durations.items():
            if (model, task) == (run.model, run.task):
                similar += values
    if not similar:
        similar = [value for values in durations.values() for value in values]
    return mean(similar)


def sweep_words(ended: int, total: int, seconds: float | None) -> str:
    """How far a sweep is: "3 of 180 runs, about 2.0h left". seconds: the time that is
    left; None if it is not known."""
    words = f"{ended} of {total} runs"
    return words if seconds is None else f"{words}, about {duration(seconds)} left"


def seconds_left_of(event: Mapping[str, Any]) -> float | None:
    """The seconds that a run still expects to take, by its last event; None if it does
    not say so."""
    seconds = event.get("seconds_left")
    return float(seconds) if isinstance(seconds, int | float) else None


def seconds_spent(event: Mapping[str, Any]) -> float:
    """The seconds that a run has trained and evaluated so far, over all attempts, by
    its last event."""
    seconds = event.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def seconds_of_record(record: Record) -> float:
    """The seconds that a finished run took, by its record."""
    cost = record["cost"]
    decoding = cost.get("decode_seconds", 0.0)
    return cost["train_seconds"] + cost["evaluate_seconds"] + decoding
