"""The study of one cell: its journal, and its trials one after another. A trial is one run for each seed."""

import statistics
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from runs.config import Launch
from runs.errors import UserError
from runs.record import Metric, Record, best_and_last
from runs.record.text import duration, plural
from runs.run import with_starts
from runs.sweep.sweep import sweep
from runs.tracking import Tracking
from runs.tune.cells import Cell, Point


class Grid(GridSampler):
    """Optuna's sampler for ask and tell: after the last trial it would stop a loop that does not exist."""

    def after_trial(self, *_: Any) -> None:
        """Does nothing."""


def open_study(cell: Cell, metric: Metric) -> optuna.Study:
    """The cell's study, new or continued. Raises UserError for a journal that cannot be read."""
    path = cell.folder / "journal.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A full disk or a loss of power cuts the last line. Remove it, so that the next one starts a new line.
    if path.is_file():
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = StudyDirection.MAXIMIZE if metric.higher_is_better else StudyDirection.MINIMIZE
    try:
        how: Any = {"study_name": cell.name, "direction": direction, "load_if_exists": True}
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(storage=storage, sampler=Grid(cell.axes, seed=0), **how)
    except (ValueError, KeyError) as error:
        mend = "Delete it: the runs of finished trials are not done again"
        raise UserError(f"{path}: damaged ({error}). {mend}") from None


def latest(cell: Cell, study: optuna.Study) -> dict[Point, FrozenTrial]:
    """The last trial of each point that has one. A queued trial has its parameters in Optuna's
    fixed_params."""
    by_point = {}
    for trial in study.get_trials(deepcopy=False):
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        if len(params) == len(cell.axes):
            by_point[tuple(params[key] for key in cell.axes)] = trial
    return by_point


def search(cell: Cell, study: optuna.Study) -> list[str]:
    """Does the remaining trials, first those that a killed command had started. Returns a line for each run
    that failed."""
    before = latest(cell, study)
    for point, last in before.items():
        if last.state == TrialState.FAIL:
            study.enqueue_trial(dict(zip(cell.axes, point, strict=True)))
    done = sum(last.state == TrialState.COMPLETE for last in before.values())
    total = len(cell.trials)
    size = f"{plural(total, 'trial')} of {plural(cell.seeds, 'run')}"
    print(f"{cell.name}: {size}, {done} done before", flush=True)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    failed: list[str] = []
    for number in range(done + 1, total + 1):
        trial = optuna.Trial(study, running.pop(0)._trial_id) if running else study.ask()
        point = tuple(trial.suggest_categorical(key, values) for key, values in cell.axes.items())
        seconds = seconds_left(cell)
        left = f"  left: {duration(seconds)}" if seconds else ""
        setting = " ".join(cell.overrides_of(point))
        print(f"[trial {number}/{total}] {setting}{left}", flush=True)
        runs = with_starts(cell.trials[point])
        outcome = sweep(runs, part=True, launch=Launch(tracking=Tracking(mode="off")))
        trial.set_user_attr("runs", cell.ids[point])
        if outcome.failed:
            study.tell(trial, state=TrialState.FAIL)
            failed += [f"{setting}, {run.label}: {error} ({log})" for run, error, log in outcome.failed]
            continue
        records = cell.records(point)
        values = [value_of(record) for record in records]
        trial.set_user_attr("values", values)
        trial.set_user_attr("rows", [records[0]["data"][f"{part}_rows"] for part in ("dev", "train")])
        trial.set_user_attr("diverged", sum(record["status"] == "diverged" for record in records))
        study.tell(trial, statistics.fmean(values))
    return failed


def seconds_left(cell: Cell) -> float | None:
    """The expected time of the runs without a record, from the mean of those with one; None without any."""
    costs = [record["cost"] for record in cell.records(*cell.trials)]
    seconds = [cost["train_seconds"] + cost["evaluate_seconds"] for cost in costs]
    return statistics.fmean(seconds) * (len(cell.runs) - len(seconds)) if seconds else None


def value_of(record: Record) -> float:
    """The metric on the held-out rows, at the epoch that the task's table reports; the worst value for a run
    that diverged in its first epoch."""
    value = best_and_last(record, "paper").get(record["result"]["reported"])
    return float(value) if value is not None else Metric.of_record(record).worst
