"""Files from elsewhere, each fetched once: from the Hugging Face hub, or from pip's package index."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """This user's cache: what was fetched, or can be computed again. $XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vera-bench"
