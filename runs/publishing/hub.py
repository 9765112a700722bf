"""Pushes a folder with an adapter to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.record.text import first_line

#: What a new repository holds before anything is pushed.
FILES_OF_A_NEW_REPOSITORY = {".gitattributes", "README.md"}


def push(folder: Path, repo: str, private: bool, message: str, command: str) -> str:
    """Pushes the files of a folder to a model repository in one commit. It makes the
    repository where there is none.

    Args:
        repo: OWNER/NAME.
        private: whether a new repository is private; an existing public one is refused.
        message: of the commit.
        command: what the user types to try again.

    Returns:
        The address of the commit.

    Raises:
        UserError: where the hub refuses or cannot be reached, or the repository holds
            something else; it names the folder and the command.
    """
    from huggingface_hub import HfApi, logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.set_verbosity_error()
    disable_progress_bars()
    api = HfApi()
    try:
        _prepare_repository(api, repo, private)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message
        )
    except Exception as error:  # the hub's library and its transfer raise many types
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, UserError):
            reason = str(error)
        raise UserError(
            f"{repo} is not pushed: {reason}. {folder} has all that would be there; "
            f"to try again: {command}"
        ) from None
    return str(commit.commit_url)


def _prepare_repository(api: Any, repo: str, private: bool) -> None:
    """Makes the repository, or checks the one that exists. Raises UserError for one
    that holds something else or is not private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    # asked first, since unlike create_repo it takes a time limit
    try:
        existing = api.model_info(repo, timeout=10)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        return
    files = {file.rfilename for file in existing.siblings or []}
    files -= FILES_OF_A_NEW_REPOSITORY
    if files and "adapter_config.json" not in files:
        raise UserError(
            f"it holds {min(files)} and no adapter. Name another repository"
        )
    if private and not existing.private:
        raise UserError(
            "it is public, and private=true would not hide it. Name another repository"
        )
    print(f"{repo} is there already: this becomes its newest commit")
