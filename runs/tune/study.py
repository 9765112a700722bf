"""One cell's study: its journal, and its trials in turn. A trial is a run a seed, with a record."""

import statistics
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from runs.config import Launch, with_starts
from runs.errors import UserError
from runs.record import Metric, Record, best_and_last
from runs.record.text import duration, plural
from runs.sweep.sweep import sweep
from runs.tracking import Tracking
from runs.tune.cells import Cell, Point


class Grid(GridSampler):
    """Optuna's, for ask and tell: after the last trial it would stop a loop that there is not."""

    def after_trial(self, *_: Any) -> None:
        """Does nothing."""


def open_study(cell: Cell, metric: Metric) -> optuna.Study:
    """The cell's study, begun or gone on with. Raises UserError for a journal that cannot be read."""
    path = cell.folder / "journal.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A full disk or a loss of power cuts the last line, and the next one would go on in it
    if path.is_file():
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = StudyDirection.MAXIMIZE if metric.higher_is_better else StudyDirection.MINIMIZE
    try:
        storage, sampler = JournalStorage(JournalFileBackend(str(path))), Grid(cell.axes, seed=0)
        return optuna.create_study(
            storage=storage, sampler=sampler, study_name=cell.name, direction=direction, load_if_exists=True
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete it: the runs of finished trials are not done again"
        ) from None


def latest(cell: Cell, study: optuna.Study) -> dict[Point, FrozenTrial]:
    """The last trial of each point that has one. Of one that is only queued, Optuna knows the parameters as
    fixed_params."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        if len(params) == len(cell.axes):
            found[tuple(params[key] for key in cell.axes)] = trial
    return found


def search(cell: Cell, study: optuna.Study) -> list[str]:
    """Does the trials that are left, those first that were on when an earlier command was killed. Returns a
    line for each run that failed."""
    before = latest(cell, study)
    for point, last in before.items():
        if last.state == TrialState.FAIL:
            study.enqueue_trial(dict(zip(cell.axes, point, strict=True)))
    done = sum(last.state == TrialState.COMPLETE for last in before.values())
    total = len(cell.trials)
    print(
        f"{cell.name}: {plural(total, 'trial')} of {plural(cell.seeds, 'run')}, {done} done before",
        flush=True,
    )
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    failed: list[str] = []
    for number in range(done + 1, total + 1):
        trial = optuna.Trial(study, running.pop(0)._trial_id) if running else study.ask()
        point = tuple(trial.suggest_categorical(key, values) for key, values in cell.axes.items())
        seconds = seconds_left(cell)
        left = f"  left: {duration(seconds)}" if seconds else ""
        print(f"[trial {number}/{total}] {' '.join(cell.words_of(point))}{left}", flush=True)
        runs = cell.trials[point]
        outcome = sweep(with_starts(runs), part=True, launch=Launch(tracking=Tracking(mode="off")))
        trial.set_user_attr("runs", cell.ids[point])
        if outcome.failed:
            study.tell(trial, state=TrialState.FAIL)
            failed += [
                f"{' '.join(cell.words_of(point))}, {run.label}: {error} ({log})"
                for run, error, log in outcome.failed
            ]
            continue
        records = cell.records(point)
        values = [value_of(record) for record in records]
        trial.set_user_attr("values", values)
        trial.set_user_attr("rows", [records[0]["data"][f"{part}_rows"] for part in ("dev", "train")])
        trial.set_user_attr("diverged", sum(record["status"] == "diverged" for record in records))
        study.tell(trial, statistics.fmean(values))
    return failed


def seconds_left(cell: Cell) -> float | None:
    """What the runs without a record will take, by what those with one took, whenever that was; None before
    the first."""
    took = [
        record["cost"]["train_seconds"] + record["cost"]["evaluate_seconds"]
        for record in cell.records(*cell.trials)
    ]
    return statistics.fmean(took) * (len(cell.trials) * cell.seeds - len(took)) if took else None


def value_of(record: Record) -> float:
    """The metric on the held-out rows, of the epoch that the task's table reports; of a run that diverged
    before its first epoch ended, the worst."""
    value = best_and_last(record, "paper").get(record["result"]["reported"])
    return float(value) if value is not None else Metric.of_record(record).worst
