"""Writes a finished run's adapter for use elsewhere, or publishes it.

vera-bench export RUN peft FOLDER
    adapter and head in peft's format, with tokenizer and model card. Load them
    with peft.PeftModel.from_pretrained(base, FOLDER)
vera-bench export RUN hub OWNER/NAME
    the same folder, pushed to the Hugging Face hub; private=true shows it to
    its owner alone
vera-bench export RUN lora FOLDER
    as a LoRA, for servers that serve nothing else. VeRA loses nothing; rank=8
    makes the LoRA smaller, and prints what that loses
vera-bench export RUN merged FOLDER
    the whole model with the adapter merged in, for
    AutoModel...from_pretrained(FOLDER). It prints by how much its outputs
    differ, and refuses more than rounding
vera-bench export RUN leaderboard=FILE
    a run of GSM8K as a result file of peft's method comparison

RUN is a run id, or its beginning, as in outputs/records.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from runs.command.advice import require_known
from runs.command.errors import UserError
from runs.command.parser import (
    CommandLine,
    RecordSettings,
    entry_point,
    read_command_line,
    setting,
)
from runs.evaluate import find_finished
from runs.publishing.adapter_folder import (
    AdapterChoices,
    write_adapter,
    write_merged,
)
from runs.publishing.hub import push
from runs.publishing.result_file import result_file
from runs.record.files import write_atomically
from runs.record.text import megabytes

#: The settings that each format takes.
FORMATS = {
    "peft": ("base", "license"),
    "hub": ("base", "license", "private"),
    "lora": ("base", "license", "rank"),
    "merged": (),
}
#: The settings of every format.
COMMON_SETTINGS = frozenset({"output", "debug"})


@dataclass(frozen=True)
class Settings(RecordSettings):
    """What an export contains, and how it is published."""

    private: bool = setting(False, "hub: a repository that is made is private")
    rank: int | float | None = setting(
        None,
        "lora: of each layer; below 1: the share of squared values kept; VeRA needs none",
    )
    base: str | None = setting(
        None, "the base model, where not known: OWNER/NAME or OWNER/NAME@REVISION"
    )
    license: str | None = setting(
        None, "as the hub abbreviates it; by default the base model's"
    )
    leaderboard: str | None = setting(
        None, "in place of format and PATH: the result file of a run of GSM8K"
    )


def main(arguments: list[str]) -> int:
    if any(argument.startswith("leaderboard=") for argument in arguments):
        return export_result(read_command_line(arguments, Settings, positional="RUN"))
    line = read_command_line(
        arguments, Settings, positional=f"RUN {'|'.join(FORMATS)} PATH"
    )
    name, target_format, target = line.positional
    settings = line.settings
    _check_settings(line, target_format)
    if target_format == "hub":
        _check_repository(target)
    elif Path(target).exists() and any(Path(target).iterdir()):
        raise UserError(f"{target}: is there already. Name another, or remove it")
    record = find_finished(name, settings.output)
    if not record["parameters"]["adapter"] and target_format != "merged":
        raise UserError(
            f"run {record['id']} ({record['label']['row']}) has no adapter: take merged"
        )
    folder = Path(target)
    if target_format == "hub":
        folder = Path(settings.output, "exports", record["id"])
    if target_format == "merged":
        write_merged(record, folder, settings.output)
    else:
        choices = AdapterChoices(
            base=settings.base,
            licence=settings.license,
            repository=target if target_format == "hub" else None,
            as_lora=target_format == "lora",
            lora_rank=settings.rank,
        )
        write_adapter(record, folder, settings.output, choices)
    if target_format == "hub":
        message = f"Run {record['id']} of vera-bench"
        command = shlex.join(["vera-bench", "export", *arguments])
        print(push(folder, target, settings.private, message, command))
    else:
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {megabytes(size)}")
    return 0


def _check_settings(line: CommandLine[Settings], target_format: str) -> None:
    """Raises UserError for settings that the format does not take, and wrong values."""
    allowed = {
        *COMMON_SETTINGS,
        *FORMATS[require_known("format", target_format, FORMATS)],
    }
    for key in sorted(line.given.keys() - allowed):
        formats = [name for name, keys in FORMATS.items() if key in keys]
        raise UserError(
            f"{key}= belongs to {', '.join(formats)}, not to {target_format}"
        )
    rank = line.settings.rank
    if rank is not None and not _is_rank(rank):
        raise UserError(
            f"rank={rank}: should be a whole number from 1 on, or a share above 0 and "
            "up to 1"
        )
    base = line.settings.base
    if base and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", base):
        raise UserError(
            f"base={base}: should be OWNER/NAME or OWNER/NAME@REVISION on the hub"
        )


def _is_rank(rank: int | float) -> bool:
    """Whether a number is a rank or, with a fraction, a share of squared values."""
    if isinstance(rank, int):
        return rank >= 1
    return 0 < rank <= 1


def _check_repository(name: str) -> None:
    """Raises UserError, before anything is written, for a repository that the hub would
    not take."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or len(name) > 96:
        raise UserError(f"{name}: a repository of the hub is OWNER/NAME")
    if get_token() is None:
        raise UserError(
            f"{name}: pushing needs a token with write access: hf auth login, or "
            "HF_TOKEN="
        )


def export_result(line: CommandLine[Settings]) -> int:
    """Writes a run's score and costs as a result file of peft's method comparison.
    Returns the exit code."""
    extra = sorted(line.given.keys() - {"leaderboard", *COMMON_SETTINGS})
    if extra:
        raise UserError(f"{extra[0]}= does not go with leaderboard=")
    path = Path(str(line.settings.leaderboard))
    if path.exists():
        raise UserError(f"{path}: is there already. Name another, or remove it")
    record = find_finished(line.positional[0], line.settings.output)
    write_atomically(path, json.dumps(result_file(record), indent=2) + "\n")
    print(f"{path}: vera-bench table leaderboard={path.parent} reads it")
    return 0


if __name__ == "__main__":
    entry_point(main)
