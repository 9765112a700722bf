"""Pushes an adapter's folder to the Hugging Face hub, or says in one line why it is not there."""

import re
from pathlib import Path

from runs.errors import UserError
from runs.record.text import first_line

#: What a new repository holds before anything is pushed.
EMPTY = {".gitattributes", "README.md"}


def check_name(repo: str) -> None:
    """Raises UserError unless it is OWNER/NAME, and where there is no token to push with."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or len(repo) > 96:
        raise UserError(f"{repo}: a repository of the hub is OWNER/NAME")
    if get_token() is None:
        raise UserError(f"{repo}: pushing needs a token with write access: hf auth login, or HF_TOKEN=")


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
