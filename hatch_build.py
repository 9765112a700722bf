"""What the build adds to the five packages: conf/, as runs/conf, and runs/build.json,
the commit of the code and whether files differ from it. An editable install gets
neither: its clone has both."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What a wheel holds; records are not code.
CODE = (
    "pyproject.toml",
    "vera",
    "tasks",
    "runs",
    "analysis",
    "vera_bench",
    "conf",
    ":!runs/records",
)


class Hook(BuildHookInterface):
    """For wheels and sdists."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the files."""
        root, added = Path(self.root), build_data["force_include"]
        if version == "editable":
            return
        if self.target_name == "wheel":
            added[str(root / "conf")] = "runs/conf"
        state = _git_state(root)
        if state is not None:  # an unpacked sdist has the file already, or nobody knows
            self.folder = tempfile.TemporaryDirectory()
            file = Path(self.folder.name) / "build.json"
            file.write_text(json.dumps(state) + "\n", encoding="utf-8")
            added[str(file)] = "runs/build.json"

    def finalize(
        self, version: str, build_data: dict[str, Any], artifact_path: str
    ) -> None:
        """Removes the file that is in the wheel now."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


def _git_state(root: Path) -> dict[str, Any] | None:
    """The commit, and whether files differ from it; None where no repository tracks
    this folder."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # else the repository around it is another's
        git("ls-files", "--error-unmatch", "pyproject.toml")
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None
