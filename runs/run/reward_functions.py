"""What a completion is rewarded for: an exact answer, or functions of the user's own.

Such a function is `module.function`, of a .py file whose folder is on
PYTHONPATH. It takes prompt, completion and answer (all texts; the answer is None where
the row has none) and returns a number."""

import math
import numbers
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runs.command.errors import UserError
from runs.record.configuration import Configuration
from tasks.base import first_line, quoted
from tasks.exact import ExactTask, Exercise
from tasks.files import module_file

EXACT_MATCH = "exact_match"
#: Rows of the forward passes that tokens are sampled from. The number is fixed: another
#: one would change the rounding of the logits.
SAMPLING_BLOCK = 128
#: The setting reward.function: a name, or weights by name.
Functions = str | Mapping[str, float]


@dataclass(frozen=True)
class RewardFunction:
    """A function with its weight in the reward. name: as reward.function has it.
    function: None for exact_match, which the task checks."""

    name: str
    weight: float
    function: Callable[[str, str, str | None], object] | None
    task: ExactTask

    def score(self, exercise: Exercise, completion: str) -> float:
        """The score of a completion. Raises UserError where the function raises or
        returns no finite number."""
        if self.function is None:
            return float(self.task.is_right(exercise, completion))
        try:
            score = self.function(exercise.prompt, completion, exercise.answer)
        except Exception as error:  # of the user's code
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"reward.function={self.name} raises {reason}, for the completion "
                f"{quoted(completion)}"
            ) from None
        if not isinstance(score, numbers.Real) or not math.isfinite(score):
            raise UserError(
                f"reward.function={self.name} returns {quoted(score)} for the "
                f"completion {quoted(completion)}: it should return a number"
            )
        return float(score)


def weights_by_name(functions: Functions) -> dict[str, float]:
    """The weight of each function, by its name; 1 where only a name is given."""
    if isinstance(functions, str):
        return {functions: 1.0}
    return dict(functions)


def function_file(name: str) -> Path:
    """The file of a user's own function. Raises UserError if there is none."""
    path = module_file(name)
    if path is None or path.suffix != ".py":
        raise UserError(
            f"reward.function={name}: should be {EXACT_MATCH}, or module.function of a "
            ".py file whose folder is on PYTHONPATH"
        )
    return path


def function_files(functions: Functions) -> dict[str, Path]:
    """The files of the user's own functions, by the functions' names. Their content is
    part of a run's identity."""
    names = weights_by_name(functions)
    return {name: function_file(name) for name in names if name != EXACT_MATCH}


def load_functions(functions: Functions, task: ExactTask) -> list[RewardFunction]:
    """Imports the reward functions of a run, whose task is `task`. Raises UserError for
    one that cannot be imported."""
    loaded = []
    for name, weight in weights_by_name(functions).items():
        function: Callable[[str, str, str | None], object] | None = None
        if name != EXACT_MATCH:
            function_file(name)  # raises an error with advice if there is none
            try:
                function = pkgutil.resolve_name(name)
            except Exception as error:  # of the user's module
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise UserError(
                    f"reward.function={name} cannot be imported: {reason}"
                ) from None
        loaded.append(RewardFunction(name, weight, function, task))
    return loaded


def check_functions(functions: list[RewardFunction], task: ExactTask) -> None:
    """Has each function score an empty completion and the right one of the first training
    row, so that a function's mistake ends the run before its first step. Raises UserError
    as RewardFunction.score does."""
    exercise = task.exercises("train")[0]
    # rows that are too long are left out, so this may be another than row 0
    first_row = task.kept_rows["train"][0]
    _, right_completion = task.splits["train"][first_row]
    for function in functions:
        function.score(exercise, "")
        function.score(exercise, right_completion)


def completion_limit(config: Configuration) -> int:
    """The most tokens that a completion may have."""
    limit = config["reward"]["max_new_tokens"] or config["task"]["max_new_tokens"]
    return int(limit)


def prompts_of_block(config: Configuration) -> int:
    """How many prompts have their completions sampled together: as many as SAMPLING_BLOCK
    rows hold, where each completion takes a row."""
    if completion_limit(config) == 1:
        # All first tokens of a prompt are drawn from the logits of one row
        return SAMPLING_BLOCK
    return max(1, SAMPLING_BLOCK // config["reward"]["samples"])


def rows_of_step(config: Configuration) -> int:
    """How many rows a step computes, which micro-batches divide among them: its training
    rows or, in training by reward, the completions of its prompts. If a completion is one
    token, all of a prompt are computed in the prompt's row."""
    rows = int(config["train"]["effective_batch"])
    if "reward" in config and completion_limit(config) > 1:
        rows *= config["reward"]["samples"]
    return rows
