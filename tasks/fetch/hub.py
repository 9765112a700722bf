"""Files from the Hugging Face hub, for tasks and for models: downloaded once, then read from the local
cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.base import DataError


def snapshot(repo: str, revision: str | None, patterns: list[str], repo_type: str, instead: str) -> Path:
    """The local folder of a hub repository at a revision (None: its default branch), with the files that
    match.

    The folder's name is the commit's hash. `instead` says in the error what to give when the hub is out of
    reach."""
    from huggingface_hub import HfApi, logging, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # Of httpx, or of what the installed hub library uses instead
    http_error: Any = HfHubHTTPError.__bases__[0]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        # Asked first, and once: the download itself would try an unreachable hub six times, for half a
        # minute.
        HfApi().repo_info(repo, revision=revision, repo_type=repo_type, timeout=10)
        if cached(repo, revision, repo_type) is None:
            print(f"fetching {repo} from the hub, once", flush=True)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, repo_type=repo_type))
    except HfHubHTTPError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the hub refuses {repo} ({reason}). Is a token needed (hf auth login)? {instead}"
        ) from None
    except (http_error, OSError):
        here = cached(repo, revision, repo_type)
        if here is None:
            raise DataError(
                f"{repo} is not on this machine and the hub cannot be reached. {instead}"
            ) from None
        return here


def data_folder(settings: Mapping[str, Any], pattern: str, copy: str) -> Path:
    """A data set's folder: settings["data_dir"], else from the hub, with the files that match. copy: where an
    error says that a local copy may lie."""
    if settings.get("data_dir"):
        return Path(settings["data_dir"])
    instead = f"Give a local copy: task.data_dir={copy} (with make: DATA={copy})"
    return snapshot(settings["hub"], settings.get("revision"), [pattern], "dataset", instead)


def content(repo: str, revision: str | None, repo_type: str) -> str | None:
    """What pins a hub repository's content: its name and commit. None where only the network knows the
    commit."""
    here = None if revision else cached(repo, None, repo_type)
    commit = revision or (here.name if here else None)
    return f"{repo}@{commit}" if commit else None


def cached(repo: str, revision: str | None, repo_type: str) -> Path | None:
    """The local folder of a hub repository, or None; never asks the network. It may lack files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"{repo_type}s--{repo.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if revision is None and reference.is_file():
        revision = reference.read_text().strip()
    found = folder / "snapshots" / revision if revision else None
    return found if found and found.is_dir() else None
