"""Result files of peft's method comparison as a frame, one row for each result.

A folder holds the files of one commit of
https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA/results, or
results of your own in that format. A file in another format is left out, with one line
that says why."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
)

from runs.command.advice import describe_mistake
from runs.command.errors import UserError

#: What the project publishes: facts read from peft's files at the commits that the
#: column `set` names.
PUBLISHED = Path(__file__).parents[1] / "printed" / "leaderboard.csv"
#: How many test questions GSM8K has. Every score is the share that was answered correctly.
QUESTIONS = 1319
#: Parts of a configuration that say nothing about the training that was asked for:
#: versions, where the model is, and what training itself writes there (AdaLoRA's ranks).
NO_SETTINGS = {
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "rank_pattern",
}
#: From this version of transformers on, `generate` takes what its configuration leaves
#: open from the model's own, and Llama's says that texts are sampled.
SAMPLES_FROM = 5

#: The reason why a file is left out is cut after so many characters.
LONGEST_ERROR = 300
#: The columns of the published results.
COLUMNS = [
    "set",
    "row",
    "method",
    "settings",
    "lr",
    "seed",
    "parameters",
    "correct",
    "train_loss",
    "forgetting",
    "memory_bytes",
    "seconds",
    "file_bytes",
    "date",
    "transformers",
    "peft",
    "torch",
    "peft_commit",
    "decoding",
]

#: What a run was asked to do, by flat keys such as train.seed.
Settings = dict[str, JsonValue]


class PeftTrainConfig(BaseModel):
    """How a run trained. Further keys are kept: they decide which rows were trained
    alike."""

    model_config = ConfigDict(extra="allow")
    model_id: str
    seed: int
    optimizer_kwargs: dict[str, JsonValue]
    generation_kwargs: dict[str, JsonValue] = {}


class RunInfo(BaseModel):
    created_at: AwareDatetime
    experiment_name: str = Field(min_length=1)
    train_config: PeftTrainConfig
    peft_config: dict[str, JsonValue] | None


class Metrics(BaseModel):
    test_accuracy: float | None = Field(None, alias="test accuracy", ge=0, le=1)
    train_loss: float | None = Field(None, alias="train loss")
    forgetting: float | None = None


class TrainInfo(BaseModel):
    memory: NonNegativeInt = Field(
        validation_alias=AliasChoices("accelerator_memory_max", "cuda_memory_max")
    )
    train_time: NonNegativeFloat
    file_size: NonNegativeInt
    num_trainable_params: NonNegativeInt
    status: Literal["success"]
    metrics: list[Metrics] = Field(min_length=1)


class Packages(BaseModel):
    transformers: str = Field(alias="transformers-version")
    peft: str = Field(alias="peft-version")
    torch: str = Field(alias="torch-version")
    peft_commit: str | None = Field(None, alias="peft-commit-hash")


class MetaInfo(BaseModel):
    package_info: Packages


class PeftResult(BaseModel):
    """What is read of a result file."""

    run_info: RunInfo
    train_info: TrainInfo
    meta_info: MetaInfo


def read_leaderboard(source: str) -> tuple[pd.DataFrame, list[str]]:
    """The results of folders, and a line for each file or row that is left out.

    The results have COLUMNS, and those that `with_environments` adds.

    Args:
        source: folders, with commas between them, or "published" for the results in
            analysis/printed.

    Raises:
        UserError: a folder does not exist, or no file in any of them is a result.
    """
    if source == "published":
        return read_published(), []
    results = list[dict[str, JsonValue]]()
    settings = list[Settings]()
    problems = list[str]()
    folders = [Path(name) for name in source.split(",") if name]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder (leaderboard=)")
        for path in sorted(folder.glob("*.json")):
            try:
                result = read_result(path)
                columns = result_columns(result, folder.resolve().name)
                settings_of_result = flat_settings(result)
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {error_text(error)}")
                continue
            results.append(columns)
            settings.append(settings_of_result)
    if not results:
        first = f": {problems[0]}" if problems else ""
        raise UserError(f"{source}: no result files of peft's method comparison{first}")
    frame = pd.DataFrame(results)
    frame["settings"] = settings_digests(frame.row, settings)
    frame, repeats = without_repeats(frame)
    return with_environments(frame), problems + repeats


def read_published() -> pd.DataFrame:
    """The results that the project publishes."""
    return with_environments(pd.read_csv(PUBLISHED, dtype={"settings": str}))


def read_result(path: Path) -> PeftResult:
    """A result file. Raises ValueError for a file in another format."""
    return PeftResult.model_validate_json(path.read_bytes())


def error_text(error: Exception) -> str:
    """Why a file is left out, in one line."""
    if isinstance(error, ValidationError):
        text = f"no result of peft's method comparison ({describe_mistake(error)})"
        return text[:LONGEST_ERROR]
    return str(error).partition("\n")[0]


def result_columns(result: PeftResult, folder: str) -> dict[str, JsonValue]:
    """A result as columns of the frame, but for `settings`. folder: the name of the set.
    Raises ValueError if the run has no score, or one that is no share of GSM8K's
    questions."""
    run = result.run_info
    train = result.train_info
    packages = result.meta_info.package_info
    last_metrics = train.metrics[-1]
    accuracy = last_metrics.test_accuracy
    if accuracy is None:
        raise ValueError("no test accuracy: the run did not reach its end")
    correct = round(accuracy * QUESTIONS)
    if abs(accuracy - correct / QUESTIONS) > 1e-6:
        raise ValueError(f"its score is no share of GSM8K's {QUESTIONS:,} questions")
    method = "full" if run.peft_config is None else run.peft_config.get("peft_type")
    columns: dict[str, JsonValue] = {"set": folder, "row": run.experiment_name}
    columns["method"] = str(method).lower()
    columns["lr"] = run.train_config.optimizer_kwargs.get("lr")
    columns["seed"] = run.train_config.seed
    columns["parameters"] = train.num_trainable_params
    columns["correct"] = correct
    columns["train_loss"] = last_metrics.train_loss
    columns["forgetting"] = last_metrics.forgetting
    columns["memory_bytes"] = train.memory
    columns["seconds"] = round(train.train_time, 1)
    columns["file_bytes"] = train.file_size
    columns["date"] = run.created_at.isoformat()
    columns |= packages.model_dump()
    columns["decoding"] = decoding_of(run.train_config, packages.transformers)
    return columns


def decoding_of(config: PeftTrainConfig, transformers: str) -> str:
    """How answers were decoded, "sampled" or "greedy". If the run's configuration does not
    say it, the version of transformers decides (SAMPLES_FROM)."""
    do_sample = config.generation_kwargs.get("do_sample")
    if do_sample is None:
        major = transformers.partition(".")[0]
        do_sample = major.isdigit() and int(major) >= SAMPLES_FROM
    return "sampled" if do_sample else "greedy"


# --- which rows were trained alike


def flat_settings(result: PeftResult) -> Settings:
    """What a run was asked to do, without NO_SETTINGS."""
    parts: dict[str, Settings] = {
        "train": result.run_info.train_config.model_dump(),
        "peft": result.run_info.peft_config or {},
    }
    settings: Settings = {"parameters": result.train_info.num_trainable_params}
    for part, values in parts.items():
        for key, value in values.items():
            if key not in NO_SETTINGS:
                # target modules are a set, which is written in any order
                if isinstance(value, list):
                    value = sorted(value, key=str)
                settings[f"{part}.{key}"] = value
    return settings


def settings_digests(rows: Iterable[str], settings: Sequence[Settings]) -> list[str]:
    """A digest for each result, equal for results of a row that were trained alike.

    It covers the keys that all results of the row have, because a newer peft adds keys.

    Args:
        rows: the row of each result.
        settings: of each result (`flat_settings`)."""
    shared_keys = dict[str, set[str]]()  # by row
    for row, result_settings in zip(rows, settings, strict=True):
        earlier_keys = shared_keys.get(row, {*result_settings})
        shared_keys[row] = earlier_keys & result_settings.keys()
    digests = []
    for row, result_settings in zip(rows, settings, strict=True):
        shared_settings = {key: result_settings[key] for key in shared_keys[row]}
        text = json.dumps(shared_settings, sort_keys=True)
        digests.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    return digests


def without_repeats(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Each result once, in the first folder that has it, and lines on those that are left
    out.

    A commit that replaces some results still holds the others, so later folders repeat
    them. A row that is twice in a folder is a mistake, of which we keep the first."""
    # results of a row with one date, to the second, and one score are the same run
    is_copy = frame.duplicated(["row", "date", "correct"])
    problems = []
    for name, count in frame[is_copy].set.value_counts(sort=False).items():
        problems.append(f"{name}: {count} results are those of an earlier folder")
    frame = frame[~is_copy]
    is_repeated = frame.duplicated(["set", "row"])
    for result in frame[is_repeated].to_dict("records"):
        problems.append(f"{result['set']}: {result['row']} is there twice")
    return frame[~is_repeated].reset_index(drop=True), problems


def with_environments(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `score`, in points, and `environment`, the folder and the version
    of transformers, which stand for all software that a run had. A set with both ways
    of decoding becomes two sets, whose names end in "(sampled)" and "(greedy)"."""
    frame = frame.assign(
        score=100 * frame.correct / QUESTIONS,
        environment=frame.set + " transformers " + frame.transformers,
    )
    decoding_count = frame.groupby("set").decoding.transform("nunique")
    is_mixed = decoding_count > 1
    frame.loc[is_mixed, "set"] += " (" + frame.decoding[is_mixed] + ")"
    return frame
