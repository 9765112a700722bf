"""Files from the Hugging Face hub, for tasks and models: downloaded once, then read from the local cache."""

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.base import DataError, first_line

#: The status of a hub that one has asked too often.
TOO_MANY = 429
#: Errors of the cache's file system, and not of the network: a full disk, and one that cannot be written.
FULL, UNWRITABLE = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EROFS)
COMMIT = re.compile(r"[0-9a-f]{40}")


def snapshot(repo: str, revision: str | None, patterns: list[str], repo_type: str, instead: str) -> Path:
    """The local folder of a hub repository with the files that match the patterns. Its name is the commit's
    hash. revision: None for the default branch. instead: the end of the error where the hub fails.

    Raises DataError where the hub refuses, or cannot be reached and the cache lacks the files."""
    from huggingface_hub import HfApi, logging, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import filter_repo_objects

    # The base class belongs to httpx, or to what the installed hub library uses instead
    http_error: Any = HfHubHTTPError.__bases__[0]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # There while a download runs, and after one that broke off: the cache may then lack some of the files
    asked = hashlib.sha256(json.dumps([revision, *patterns]).encode()).hexdigest()[:16]
    marker = _repository(repo, repo_type) / f".unfinished-{asked}"
    try:
        # One request first: the download itself would try an unreachable hub six times, for half a minute
        about: Any = HfApi().repo_info(repo, revision=revision, repo_type=repo_type, timeout=10)
        here, names = cached(repo, revision, repo_type), [file.rfilename for file in about.siblings or ()]
        wanted = filter_repo_objects(names, allow_patterns=patterns)
        if not here or here.name != about.sha or not all((here / name).is_file() for name in wanted):
            if here is None:
                print(f"fetching {repo} from the hub, once", flush=True)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            how: Any = {"revision": revision, "allow_patterns": patterns, "repo_type": repo_type}
            here = Path(snapshot_download(repo, **how))
        with contextlib.suppress(OSError):  # as of a cache that is only read
            marker.unlink()
        return here
    except (http_error, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        refused = isinstance(error, HfHubHTTPError) and 400 <= status < 500 and status != TOO_MANY
        here = None if refused else cached(repo, revision, repo_type)
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or (number in UNWRITABLE and here is None):
            raise
        present = (path.relative_to(here).as_posix() for path in here.rglob("*")) if here else ()
        if here and any(filter_repo_objects(present, allow_patterns=patterns)):
            if marker.exists():
                why = "its download is not finished and the hub cannot be reached: the same command goes on"
                raise DataError(f"{repo}: {why}") from None
            return here
        if status:
            reason, mend = first_line(error), f"Is a token needed (hf auth login)? {instead}"
            raise DataError(f"the hub refuses {repo} ({reason}). {mend}") from None
        why = "is not on this machine and the hub cannot be reached"
        raise DataError(f"{repo} {why}. {instead}") from None


def data_folder(settings: Mapping[str, Any], pattern: str, copy: str) -> Path:
    """A data set's folder: settings["data_dir"], else from the hub, with the files that match the pattern.
    copy: an example of a local path, for the error."""
    if settings.get("data_dir"):
        return Path(settings["data_dir"])
    instead = f"Give a local copy: task.data_dir={copy} (with make: DATA={copy})"
    return snapshot(settings["hub"], settings.get("revision"), [pattern], "dataset", instead)


def content(repo: str, revision: str | None, repo_type: str) -> str | None:
    """A hub repository's name and commit, which pin its content; of a branch or tag the commit that it was
    at when it was fetched. None if the commit is not known here."""
    folder = cached(repo, revision, repo_type)
    commit = revision if revision and COMMIT.fullmatch(revision) else folder and folder.name
    return f"{repo}@{commit}" if commit else None


def cached(repo: str, revision: str | None, repo_type: str) -> Path | None:
    """The cache's folder of a hub repository, which may lack files, or None. Uses no network."""
    folder = _repository(repo, repo_type)
    reference = folder / "refs" / (revision or "main")  # a branch or a tag
    if reference.is_file():
        revision = reference.read_text().strip()
    snapshot_folder = folder / "snapshots" / revision if revision else None
    return snapshot_folder if snapshot_folder and snapshot_folder.is_dir() else None


def _repository(repo: str, repo_type: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{repo_type}s--{repo.replace('/', '--')}"
