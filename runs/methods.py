"""The method of a run: one of vera's, or a class outside of the clone that a file of conf/method names.

    kind: my_package.svft.SVFT      # in FOLDER/method/svft.yaml, with --config-dir FOLDER

The module is imported like any other: it is installed, or its folder is on PYTHONPATH. A file alone names
one; no override does, and vera, which reads adapter files of strangers, imports nothing.
"""

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.errors import UserError

if TYPE_CHECKING:
    import vera


def make_method(settings: dict[str, Any]) -> "vera.Method":
    """The method with these settings (Run.method). Raises UserError where its class cannot be imported, and
    AdapterError as vera.make_method does."""
    import vera

    kind = settings["kind"]
    if "." not in kind:
        return vera.make_method(**settings)
    path, _, name = kind.rpartition(".")
    try:
        found = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"method.kind={kind}: no such class can be imported ({error}). Install its package, or put the"
            " folder that it is in on PYTHONPATH"
        ) from None
    if not (inspect.isclass(found) and issubclass(found, vera.Method) and "kind" in vars(found)):
        raise UserError(
            f'method.kind={kind}: should be a method such as class {name}(vera.Method, kind="{name.lower()}")'
        )
    return vera.make_method(**settings | {"kind": found.kind})


def source_file(kind: str) -> Path | None:
    """The file of a class outside of the clone, without running it; None where it is not there, or is one of
    vera's."""
    path = kind.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(path) if path else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None
