"""Pushes an adapter's folder to the Hugging Face hub, or says in one line why it is not there."""

import re
from pathlib import Path
from typing import Any

from runs.errors import UserError
from runs.record.text import first_line

#: What a new repository holds before anything is pushed.
EMPTY = {".gitattributes", "README.md"}
#: Why the hub refuses, by the status of its answer.
WHY = {
    401: "the hub does not accept this token (hf auth login, or HF_TOKEN=)",
    403: "taken by another, or this token may not write there",
    409: "the name is taken",
}


def check_name(repo: str) -> None:
    """Raises UserError unless it is OWNER/NAME, and where there is no token to push with."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or len(repo) > 96:
        raise UserError(f"{repo}: a repository of the hub is OWNER/NAME")
    if get_token() is None:
        raise UserError(
            f"{repo}: pushing needs a token of the hub with write access: hf auth login, or HF_TOKEN="
        )


def push(folder: Path, repo: str, private: bool, message: str, again: str) -> str:
    """Pushes a folder's files to a model repository in one commit; makes the repository where there is none.
    Returns the commit's address.

    private: a repository that is made is private; one that is there already and public is refused.
    again: the command that repeats this. Raises UserError in one line, which names the folder and that
    command, where the hub refuses or cannot be reached."""
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
            _check_taken(repo, there, private)
            print(f"{repo} is there already: this becomes its newest commit")
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except UserError as error:
        raise UserError(f"{error}. {_stays(folder, again)}") from None
    except Exception as error:  # the hub's library and its transfer raise many types
        raise UserError(f"{repo}: {_reason(error)}. {_stays(folder, again)}") from None
    return str(commit.commit_url)


def _stays(folder: Path, again: str) -> str:
    return f"{folder} has all that would be there; to try again: {again}"


def _check_taken(repo: str, there: Any, private: bool) -> None:
    """Raises UserError where a repository that exists is not for this adapter."""
    names = {file.rfilename for file in there.siblings or []}
    if names - EMPTY and "adapter_config.json" not in names:
        example = sorted(names - EMPTY)[0]
        raise UserError(f"{repo} is taken: it holds {example} and no adapter. Name another repository")
    if private and not there.private:
        raise UserError(f"{repo} is taken: it is public, and private=true would not hide it. Name another")


def _reason(error: BaseException) -> str:
    """Why the hub did not take it, in words; the cause where the library wraps it."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error: Any = HfHubHTTPError.__bases__[0]
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    statuses = (getattr(getattr(one, "response", None), "status_code", None) for one in chain)
    if status := next(filter(None, statuses), None):
        return WHY.get(status, f"the hub refuses it ({first_line(error)})")
    if any(isinstance(one, http_error | OSError) for one in chain):
        return f"the hub cannot be reached ({first_line(chain[-1])})"
    return f"not pushed ({type(error).__name__}: {first_line(error)})"
