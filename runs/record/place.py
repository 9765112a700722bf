"""Where the project's own files are. An installed wheel has conf/ inside runs/, and what git knew of its code
in runs/build.json (hatch_build.py)."""

import json
from pathlib import Path
from typing import Any

#: The folder of the four packages: of a clone, or site-packages.
ROOT = Path(__file__).parents[2]
#: Whether this is an installed wheel. A repository around it is then another project's.
INSTALLED = (ROOT / "runs" / "conf").is_dir()
CONF = ROOT / "runs" / "conf" if INSTALLED else ROOT / "conf"
#: Studies that the project publishes.
PUBLISHED = ROOT / "runs" / "records"


def built_from() -> dict[str, Any]:
    """The commit of an installed wheel's code, and whether files differed from it (dirty); None where it was
    not built from a git checkout."""
    try:
        built: dict[str, Any] = json.loads((ROOT / "runs" / "build.json").read_text(encoding="utf-8"))
    except OSError:
        return {"commit": None, "dirty": None}
    return built
