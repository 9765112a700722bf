"""Whether the packages are installed that commands import. `vera` alone needs fewer: pip installs these with
vera-bench[bench]."""

import sys
from importlib.util import find_spec
from pathlib import Path

#: What runs, tasks and analysis import at the top of a module, by the names that are imported.
IMPORTED = (
    *("accelerate", "annotated_types", "datasets", "evaluate", "filelock", "hydra", "jinja2", "matplotlib"),
    *("numpy", "omegaconf", "orjson", "pandas", "PIL", "pydantic", "pydantic_core", "pynvml", "safetensors"),
    *("scipy", "sklearn", "torch", "tqdm", "transformers", "typing_extensions", "yaml"),
)
INSTALL = "pip install 'vera-bench[bench]'"


def check() -> None:
    """Ends a command, with one line, where a package is missing; raises ImportError where a program imports
    this one."""
    missing = [name for name in IMPORTED if find_spec(name) is None]
    if not missing:
        return
    text = f"not installed, and vera alone needs none of it: {', '.join(missing)}. {INSTALL}"
    if sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "vera-bench":  # -m: Python has yet to find the module
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(text)
