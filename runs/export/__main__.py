"""Writes a finished run's adapter for use elsewhere, or publishes it.

python -m runs.export RUN peft FOLDER      adapter and head in peft's format, with tokenizer and model card:
                                           peft.PeftModel.from_pretrained(base, FOLDER)
python -m runs.export RUN hub OWNER/NAME   the same folder, pushed to the Hugging Face hub (private=true: only
                                           its owner sees it)
python -m runs.export RUN lora FOLDER rank=8
                                           converted to LoRA by peft, for servers that know only LoRA; prints
                                           what that loses
python -m runs.export RUN merged FOLDER    the whole model, the adapter merged in:
                                           AutoModel...from_pretrained(FOLDER); prints by how much its
                                           outputs differ, and refuses more than rounding

RUN is a run id (or its beginning), as in outputs/records.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from runs.command import OfRecords, entry_point, one_of, read, setting
from runs.errors import UserError
from runs.evaluate import find
from runs.record import first_line, megabytes

#: The formats, and the settings that each of them takes.
FORMATS = {
    "peft": ("base", "license"),
    "hub": ("base", "license", "private"),
    "lora": ("base", "license", "rank"),
    "merged": (),
}
#: What a new repository holds before anything is pushed.
EMPTY = {".gitattributes", "README.md"}


@dataclass(frozen=True)
class Settings(OfRecords):
    """Settings of the command."""

    private: bool = setting(False, "hub: a repository that is made is private")
    rank: int | float | None = setting(None, "lora: of each layer; below 1: the share of squared values kept")
    base: str | None = setting(None, "the base model, where not known: OWNER/NAME or OWNER/NAME@REVISION")
    license: str | None = setting(None, "as the hub abbreviates it; by default the base model's")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="RUN FORMAT PATH")
    (name, form, target), settings, output = line.names, line.settings, line.settings.output
    for key in sorted(line.given.keys() - {"output", "debug", *FORMATS[one_of("format", form, FORMATS)]}):
        takers = ", ".join(other for other, keys in FORMATS.items() if key in keys)
        raise UserError(f"{key}= belongs to {takers}, not to {form}")
    if form == "lora" and settings.rank is None:
        raise UserError("rank is missing: runs.export RUN lora FOLDER rank=8")
    rank, base = settings.rank, settings.base or "none"
    if rank is not None and not (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1):
        raise UserError(f"rank={rank}: should be a whole number from 1 on, or a share above 0 and up to 1")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", base):
        raise UserError(f"base={base}: should be OWNER/NAME or OWNER/NAME@REVISION on the hub")
    if form == "hub":
        from huggingface_hub import get_token

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", target) or len(target) > 96:
            raise UserError(f"{target}: a repository of the hub is OWNER/NAME")
        if get_token() is None:
            raise UserError(f"{target}: pushing needs a token with write access: hf auth login, or HF_TOKEN=")
    elif Path(target).exists() and any(Path(target).iterdir()):
        raise UserError(f"{target}: is there already. Name another, or remove it")
    record = find(name, output)
    if not record["parameters"]["adapter"] and form != "merged":
        raise UserError(f"run {record['id']} ({record['label']['row']}) has no adapter to export")
    from runs.export.folder import write_adapter, write_merged  # torch

    folder = Path(output, "exports", record["id"]) if form == "hub" else Path(target)
    if form == "merged":
        write_merged(record, folder, output)
    else:
        of_hub = target if form == "hub" else None
        write_adapter(record, folder, output, settings.rank, settings.base, settings.license, of_hub)
    if form == "hub":
        again = shlex.join(["python", "-m", "runs.export", *arguments])
        print(push(folder, target, settings.private, f"Run {record['id']} of vera-bench", again))
    else:
        print(f"{folder}: {megabytes(sum(file.stat().st_size for file in folder.iterdir()))}")
    return 0


def push(folder: Path, repo: str, private: bool, message: str, again: str) -> str:
    """Pushes a folder's files to a model repository in one commit; makes the repository where there is none.
    Returns the commit's address.

    private: a repository that is made is private; one that is there already and public is refused.
    again: the command that repeats this. Raises UserError in one line, which names the folder and that
    command, where the hub refuses or cannot be reached, or the repository holds something else."""
    from huggingface_hub import HfApi, logging
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    api = HfApi()
    try:
        try:  # asked first: with a limit in time, which making a repository does not have
            there = api.model_info(repo, timeout=10)
        except RepositoryNotFoundError:
            api.create_repo(repo, private=private)
        else:
            names = {file.rfilename for file in there.siblings or []} - EMPTY
            if names and "adapter_config.json" not in names:
                raise UserError(f"it holds {min(names)} and no adapter. Name another repository")
            if private and not there.private:
                raise UserError("it is public, and private=true would not hide it. Name another repository")
            print(f"{repo} is there already: this becomes its newest commit")
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as error:  # the hub's library and its transfer raise many types
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        stays = f"{folder} has all that would be there; to try again: {again}"
        raise UserError(f"{repo} is not pushed: {why}. {stays}") from None
    return str(commit.commit_url)


if __name__ == "__main__":
    entry_point(main)
