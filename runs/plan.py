"""What a command would do: done, failed, missing or blocked, and what it would cost. Runs nothing and needs no torch.

python -m runs.plan paper=table2_base
python -m runs.plan task=rte,mrpc method=vera seed=0,1,2
"""

import math
import statistics
from collections import Counter
from dataclasses import dataclass

import tasks
from runs.config import Run, expand, starts
from runs.errors import UserError, entry_point
from runs.identity import one_look, run_id
from runs.record import Ledger, Record, read_ledger, run_folder
from runs.starts import start_file
from runs.text import duration, megabytes

MARKS = {"failed": "f", "diverged": "d", "partial": "r", "blocked": "b", "unknown": "?"}
LEGEND = {
    "f": "failed (the same command tries again)",
    "d": "diverged (a result)",
    "r": "begun, goes on from its checkpoint",
    "b": "blocked",
    "?": "not known without the network",
}


@dataclass(frozen=True)
class Planned:
    """A run and where it stands: done, diverged, failed, partial, missing, blocked or unknown; `why` in one line."""

    run: Run
    state: str
    why: str = ""


@one_look()
def plan(runs: list[Run], ledger: Ledger) -> list[Planned]:
    """Where each run stands, from the ledger and the files on this machine alone."""
    return [_state(run, ledger) for run in runs]


def _state(run: Run, ledger: Ledger) -> Planned:
    try:
        found = run_id(run)
    except (UserError, tasks.DataError) as error:
        return Planned(run, "blocked", str(error))
    if found is None:
        return Planned(run, "unknown", f"{run.model} or {run.task} has no pinned revision and is not on this machine")
    record = ledger.records.get(found)
    if record and record["status"] != "failed":
        return Planned(run, record["status"])
    folder = run_folder(run.config["output"], found)
    if run.config["init_from"]:
        try:
            start_file(run)
        except UserError as error:
            return Planned(run, "blocked", str(error))
    if record:
        return Planned(run, "failed", f"{record['error']} ({folder / 'log.txt'})")
    return Planned(run, "partial" if (folder / "checkpoint.safetensors").is_file() else "missing")


def show(planned: list[Planned], ledger: Ledger, title: str, first: list[Planned] | None = None) -> str:
    """The plan as text: a grid of rows x tasks, totals, cost, and why anything failed or is blocked.

    first: runs that were not asked for and come before, because others start from their adapters.
    """
    first = first or []
    rows = list(dict.fromkeys(p.run.row for p in planned))
    columns = list(dict.fromkeys((p.run.model, p.run.config["task"]["name"]) for p in planned))
    models = list(dict.fromkeys(model for model, _ in columns))
    sizes = {"task": len(columns), "row": len(rows), "seed": len({p.run.seed for p in planned})}
    size = " x ".join(f"{count} {word}{'s' * (count > 1)}" for word, count in sizes.items())
    lines = [
        f"{title}: {size} = {len(planned)} runs on {', '.join(models)}" + (f", and {len(first)} before them" if first else ""),
        "",
    ]
    for p in first:
        waiting = sum(q.run.start == p.run for q in planned)
        lines += [f"first: {p.run.label}, from which {waiting} of them start: {p.state}{f' ({p.why})' if p.why else ''}", ""]
    names = [task if len(models) == 1 else f"{task}@{model}" for model, task in columns]
    width = max(9, *(len(name) + 2 for name in names))
    margin = max(len(row) for row in rows) + 2
    lines.append(" " * margin + "".join(f"{name:<{width}}" for name in names))
    for row in rows:
        cells = []
        for column in columns:
            states = Counter(
                p.state for p in planned if (p.run.row, p.run.model, p.run.config["task"]["name"]) == (row, *column)
            )
            marks = "".join(mark for state, mark in MARKS.items() if states[state])
            finished = states["done"] + states["diverged"]
            cells.append(f"{finished}/{states.total()} {marks}".strip() if states.total() else "-")
        lines.append(f"{row:<{margin}}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip())
    used = {MARKS[p.state] for p in planned if p.state in MARKS}
    if used:
        lines.append("; ".join(f"{mark}: {LEGEND[mark]}" for mark in LEGEND if mark in used))
    totals = Counter(p.state for p in planned)
    order = ("done", "diverged", "failed", "partial", "missing", "blocked", "unknown")
    lines += ["", " · ".join(f"{state} {totals[state]}" for state in order if totals[state]), cost([*first, *planned], ledger)]
    coming = [p.run for p in first if p.state not in ("done", "diverged", "blocked")]
    for state in ("failed", "blocked", "unknown"):
        reasons: Counter[str] = Counter()
        for p in (p for p in planned if p.state == state):
            soon = ", and is done first by the same command" if p.run.start in coming else ""
            reasons[f"{p.run.label}: {p.why}" if state == "failed" else f"{p.why}{soon}"] += 1
        lines += [f"{state}: {why}" + (f" ({count} runs)" if count > 1 else "") for why, count in reasons.items()]
    return "\n".join(lines)


def cost(planned: list[Planned], ledger: Ledger) -> str:
    """Time and disk that are left on one device, from finished runs of the same model and task."""
    coming = [p.run for p in planned if p.state not in ("done", "diverged", "blocked")]
    # A run that waits for one of these can be done after it, by the same command.
    left = [*coming, *(p.run for p in planned if p.state == "blocked" and p.run.start in coming)]
    if not left:
        return "nothing left to do" if all(p.state != "blocked" for p in planned) else "nothing that can be done yet"
    done = [record for record in ledger if record["status"] == "done"]
    guesses = [(run, guess) for run in left if (guess := _like(run, done))]
    if not guesses:
        return "no estimate: none of these models and tasks has a finished run yet"
    seconds = sum(statistics.median(_seconds(run, r) for r in guess) for run, guess in guesses)
    size = sum(
        statistics.median(r["cost"]["adapter_bytes"] + 4 * r["parameters"]["head"] for r in guess) for _, guess in guesses
    )
    basis = len({r["id"] for _, guess in guesses for r in guess})
    share = "" if len(guesses) == len(left) else f" for {len(guesses)} of the {len(left)} runs left"
    time = f"est. {duration(seconds)} left on one device{share} (from {basis} finished run{'s' * (basis > 1)})"
    return f"{time}, {megabytes(size)} of adapters and heads"


def _like(run: Run, done: list[Record]) -> list[Record]:
    """Finished runs to judge this one by: the same cell, or else other rows of the same model and task, as large a one."""
    same = [r for r in done if (r["cell"]["model"], r["cell"]["task"]) == (run.model, run.config["task"]["name"])]
    sizes = ("train_rows", "dev_rows", "holdout", "items", "decode", "beams", "max_new_tokens", "shots", "image_size")
    same = [r for r in same if all(r["config"]["task"].get(k) == run.config["task"].get(k) for k in sizes)]
    return [r for r in same if r["cell"]["row"] == run.row] or [r for r in same if r["steps"]]


def _seconds(run: Run, record: Record) -> float:
    """What a run would take at the pace of a finished one, which may have had other epochs, or stopped early."""
    train = run.config["train"]
    steps_per_epoch = math.ceil(record["data"]["train_rows"] / train["effective_batch"])
    steps = min(steps_per_epoch * train["epochs"], train["max_steps"] or math.inf)
    per_row = record["cost"]["train_seconds"] / max(record["steps"] * record["effective_batch"], 1)
    per_evaluation = record["cost"]["evaluate_seconds"] / len(record["curve"]["epoch"])
    decoding = record["cost"].get("decode_seconds", 0.0)
    if run.method["kind"] == "none":  # which is evaluated once, as it is
        return float(per_evaluation + decoding)
    return float(per_row * steps * train["effective_batch"] + per_evaluation * math.ceil(steps / steps_per_epoch) + decoding)


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    runs = expand([word for word in arguments if word not in ("-m", "--multirun")])
    first = [run for run in starts(runs) if run not in runs]
    ledger = read_ledger(runs[0].config["output"], published=False)  # what was run elsewhere is not done here
    for problem in ledger.problems:
        print(f"left out: {problem}")
    title = f"paper={runs[0].paper}" if runs[0].paper else "plan"
    print(show(plan(runs, ledger), ledger, title, plan(first, ledger)))
    return 0


if __name__ == "__main__":
    entry_point(main)
