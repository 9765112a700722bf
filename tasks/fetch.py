"""Files from elsewhere, each fetched once: from the hub into its cache, and from the
package index.

A file of the package index is found by unearth with pip's own settings: `pip download`
would build a source archive, and so run its setup.py. Read are those that `pip config
list` prints, of files and environment: index-url, extra-index-url, find-links,
no-index, cert, client-cert, proxy, trusted-host and timeout."""

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
from collections.abc import Mapping
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base import DataError, first_line
from tasks.files import whole

if TYPE_CHECKING:
    from unearth import PackageFinder

#: The status of a hub that one has asked too often.
TOO_MANY = 429
#: Errors of the cache's file system, and not of the network: a full disk, and one that
#: cannot be written.
FULL, UNWRITABLE = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EROFS)
COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """This user's cache: what was fetched, or can be computed again. $XDG_CACHE_HOME
    moves it."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vera-bench"
    )


# --- the hub


def snapshot(
    repo: str, revision: str | None, patterns: list[str], repo_type: str, instead: str
) -> Path:
    """The local folder of a hub repository with the files that match the patterns. Its
    name is the commit's hash. revision: None for the default branch. instead: the end
    of the error where the hub fails.

    Raises DataError where the hub refuses, or cannot be reached and the cache lacks the
    files."""
    from huggingface_hub import HfApi, logging, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import filter_repo_objects

    # The base class belongs to httpx, or to what the installed hub library uses instead
    http_error: Any = HfHubHTTPError.__bases__[0]
    logging.set_verbosity_error()
    # There while a download runs, and after one that broke off: the cache may then lack
    # some of the files
    asked = hashlib.sha256(json.dumps([revision, *patterns]).encode()).hexdigest()[:16]
    marker = _repository(repo, repo_type) / f".unfinished-{asked}"
    try:
        # One request first: the download itself would try an unreachable hub six times,
        # for half a minute
        about: Any = HfApi().repo_info(
            repo, revision=revision, repo_type=repo_type, timeout=10
        )
        here, names = (
            cached(repo, revision, repo_type),
            [file.rfilename for file in about.siblings or ()],
        )
        wanted = filter_repo_objects(names, allow_patterns=patterns)
        if (
            not here
            or here.name != about.sha
            or not all((here / name).is_file() for name in wanted)
        ):
            if here is None:
                print(f"fetching {repo} from the hub, once", flush=True)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            how: Any = {
                "revision": revision,
                "allow_patterns": patterns,
                "repo_type": repo_type,
            }
            here = Path(snapshot_download(repo, **how))
        with contextlib.suppress(OSError):  # as of a cache that is only read
            marker.unlink()
        return here
    except (http_error, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        here = (
            None
            if 400 <= status < 500 and status != TOO_MANY
            else cached(repo, revision, repo_type)
        )
        number = getattr(error, "errno", None)
        if number in FULL or (number in UNWRITABLE and here is None):
            raise
        present = (
            (path.relative_to(here).as_posix() for path in here.rglob("*"))
            if here
            else ()
        )
        if here and any(filter_repo_objects(present, allow_patterns=patterns)):
            if marker.exists():
                why = "its download is not finished and the hub cannot be reached: the same command goes on"
                raise DataError(f"{repo}: {why}") from None
            return here
        if status:
            reason, mend = (
                first_line(error),
                f"Is a token needed (hf auth login)? {instead}",
            )
            raise DataError(f"the hub refuses {repo} ({reason}). {mend}") from None
        why = "is not on this machine and the hub cannot be reached"
        raise DataError(f"{repo} {why}. {instead}") from None


def data_folder(settings: Mapping[str, Any], patterns: list[str], copy: str) -> Path:
    """A data set's folder: settings["data_dir"], else from the hub, with the files that
    match the patterns. copy: an example of a local path, for the error."""
    if settings.get("data_dir"):
        return Path(settings["data_dir"])
    instead = f"Give a local copy: task.data_dir={copy} (with make: DATA={copy})"
    return snapshot(
        settings["hub"], settings.get("revision"), patterns, "dataset", instead
    )


def content(repo: str, revision: str | None, repo_type: str) -> str | None:
    """A hub repository's name and commit, which pin its content; of a branch or tag the
    commit that it was at when it was fetched. None if the commit is not known here."""
    folder = cached(repo, revision, repo_type)
    commit = (
        revision if revision and COMMIT.fullmatch(revision) else folder and folder.name
    )
    return f"{repo}@{commit}" if commit else None


def cached(repo: str, revision: str | None, repo_type: str) -> Path | None:
    """The cache's folder of a hub repository, which may lack files, or None. Uses no
    network."""
    folder = _repository(repo, repo_type)
    reference = folder / "refs" / (revision or "main")  # a branch or a tag
    if reference.is_file():
        revision = reference.read_text().strip()
    snapshot_folder = folder / "snapshots" / revision if revision else None
    return snapshot_folder if snapshot_folder and snapshot_folder.is_dir() else None


def _repository(repo: str, repo_type: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{repo_type}s--{repo.replace('/', '--')}"


# --- the package index


def fetch_package(project: str, sha256: str, target: Path) -> None:
    """Fetches the file of `project` with this sha256, a source archive or a wheel, to
    `target`, where it is not there yet. Raises DataError where no index has it."""
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return
    print(f"fetching {project} with pip's settings, once", flush=True)
    import httpx2
    from unearth.errors import UnpackError

    # Keeps what unearth warns of: pages that it could not read
    warned, hashes = BufferingHandler(1000), {"sha256": [sha256]}
    warned.setLevel(logging.WARNING)
    logging.getLogger("unearth").addHandler(warned)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        finder = package_finder(pip_settings())
        package = next(iter(finder.find_all_packages(project, True, hashes)), None)
        if package is not None:
            with tempfile.TemporaryDirectory() as work, whole(target) as partial:
                # A file of find-links stays where it is
                shutil.copyfile(finder.download(package.link, work, hashes), partial)
            return
        reasons = [record.getMessage().partition("\n")[0] for record in warned.buffer]
        reason = (
            "; ".join(reasons)
            or "no index that pip is told to ask lists it with this sha256"
        )
    except (UnpackError, httpx2.HTTPError, OSError, ValueError) as error:
        # ValueError: of a setting
        reason = first_line(error)
    finally:
        logging.getLogger("unearth").removeHandler(warned)
    mend = f"Name an index (PIP_INDEX_URL) or folder (PIP_FIND_LINKS) with the file of sha256 {sha256}"
    raise DataError(f"{project} could not be fetched: {reason}. {mend}")


def pip_settings() -> dict[str, str]:
    """pip's settings for a download: [global] and [download] of its files, and the
    environment's. Raises OSError where pip does not run."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(
            f"pip does not run ({(done.stderr.strip().splitlines() or [''])[-1]})"
        )
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        key, equals, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if equals and section in sections:
            sections[section][option] = str(ast.literal_eval(value))
    return sections["global"] | sections["download"] | sections[":env:"]


def package_finder(settings: dict[str, str]) -> "PackageFinder":
    """A finder that asks the indexes and folders of pip's settings, as pip would."""
    from unearth import PackageFinder
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers.sync import PyPIClient

    context = ssl.create_default_context(cafile=settings.get("cert"))
    if "client-cert" in settings:
        context.load_cert_chain(settings["client-cert"])
    how: dict[str, Any] = {"proxy": settings["proxy"]} if "proxy" in settings else {}
    how["timeout"] = float(
        settings.get("timeout") or settings.get("default-timeout") or 15
    )
    trusted = settings.get("trusted-host", "").split()
    session: Any = PyPIClient(
        trusted_hosts=trusted, verify=context, follow_redirects=True, **how
    )
    finder = PackageFinder(
        session, index_urls=settings.get("index-url", "").split(), trusted_hosts=trusted
    )
    for address in settings.get("extra-index-url", "").split():
        finder.add_index_url(address)
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        finder.sources.clear()
    indexes = [source["url"] for source in finder.sources]
    session.auth = MultiDomainBasicAuth(prompting=False, index_urls=indexes)
    for address in settings.get("find-links", "").split():
        finder.add_find_links(address)
    return finder
