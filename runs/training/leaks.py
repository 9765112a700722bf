"""Checks that a warm start has not been trained on what its run is judged on."""

from collections.abc import Iterator

import tasks
from runs.command.errors import UserError
from runs.record.cell import recorded_start
from runs.record.configuration import Configuration
from runs.record.ledger import finished_record
from runs.run.definition import Run
from tasks.exact import ExactTask


def refuse_leaked_start(run: Run, task: ExactTask) -> None:
    """Raises UserError where the run that this one starts from, or one before it, was
    trained on a held-out or test problem of this run. What an adapter file was trained
    on is not known, so it passes."""
    judged_problems = {task.problem_key(prompt) for prompt, _ in task.splits["dev"]}
    judged_problems |= {task.problem_key(item.prompt) for item in task.items}
    for name, config in _earlier_runs(run):
        # only its training rows are needed, and no test items
        earlier_task = tasks.load({**config["task"], "decode": "none"})
        if not isinstance(earlier_task, ExactTask):
            continue
        rows = earlier_task.splits["train"]
        trained_problems = {earlier_task.problem_key(prompt) for prompt, _ in rows}
        shared = len(judged_problems & trained_problems)
        if shared:
            raise UserError(
                f"init_from={run.config['init_from']}: {name} was trained on {shared} "
                f"of the {len(judged_problems)} held-out and test problems of this run. Start "
                "from a run on other problems"
            )


def _earlier_runs(run: Run) -> Iterator[tuple[str, Configuration]]:
    """The run that a run starts from, the run that this one started from, and so on:
    what each is called, and its configuration. Ends at an adapter file, and at a run
    whose record is not here."""
    source = run.config["init_from"]
    if run.start is not None:
        yield run.start.label, run.start.config
        source = run.start.config["init_from"]
    while source:
        record = finished_record(run.config["output"], source)
        if record is None:
            return
        yield f"run {source}", record["config"]
        # The run's id stands before the settings of what it kept.
        source = (recorded_start(record) or "").partition(" ")[0]
