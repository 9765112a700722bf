"""What a model is trained and judged on, one module or package for each family
(FAMILIES). A task does not know the method.

A family is a module or a package of this folder with
    PROTOCOL          an integer, raised by hand when a change of the family changes its results
    HELD_OUT          optional: {task's name: integer}, which replaces PROTOCOL where task.holdout is set
    source(settings)  -> Source: where the rows are, without reading or fetching them (and without torch)
    load(settings)    -> a task: its rows, collation, loss and metric
With task.holdout, a share of the training rows replaces the dev rows (Task.hold_out).
`settings` is the task's part of the configuration (conf/task/NAME.yaml).
"""

import importlib
from types import ModuleType

from tasks.base import DataError, Rows, Settings, Source, Task

#: The families whose answers are read exactly, which training by reward needs.
EXACT_FAMILIES = ("commonsense", "maths", "problems")
FAMILIES = (
    "commonsense",
    "e2e",
    "glue",
    "images",
    "instruct",
    "maths",
    "problems",
    "text",
)


def family(settings: Settings) -> ModuleType:
    """The module of the task's family. Raises DataError, before it imports anything,
    for a name that is not in FAMILIES."""
    name = settings["family"]
    if name not in FAMILIES:
        raise DataError(f"no task family {name!r}: it is one of {', '.join(FAMILIES)}")
    return importlib.import_module(f"tasks.{name}")


def protocol(settings: Settings) -> int:
    """The version of the protocol that a run of the task follows: PROTOCOL or HELD_OUT
    of its family."""
    module = family(settings)
    version: int = module.PROTOCOL
    if settings.get("holdout") is not None:
        version = getattr(module, "HELD_OUT", {}).get(settings["name"], version)
    return version


def source(settings: Settings) -> Source:
    """Where the task's rows come from. Raises DataError where a local file is
    missing."""
    source: Source = family(settings).source(settings)
    return source


def load(settings: Settings) -> Task:
    """The task with its rows, which are fetched if necessary. Raises DataError for bad
    or missing data."""
    task: Task = family(settings).load(settings)
    if settings.get("folds") is not None:
        task.take_fold(settings["fold"], settings["folds"])
    if settings.get("holdout") is not None:
        if task.decodes:
            share, split = settings["holdout"], settings["decode"]
            raise DataError(
                f"task.holdout={share:g} with task.decode={split}: set decode to none"
            )
        task.hold_out(settings["holdout"])
    return task
