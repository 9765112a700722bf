"""The method of a run: one of vera's, or a class outside of the clone that a file of conf/method names.

    kind: my_package.svft.SVFT      # in FOLDER/method/svft.yaml, with --config-dir FOLDER

The module is imported like any other: it is installed, or its folder is on PYTHONPATH. Only a file can name
a class; an override cannot, and vera, which reads adapter files from anywhere, imports none.
"""

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.errors import UserError
from runs.record.text import one_line

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
        method = getattr(importlib.import_module(path), name)
    except Exception as error:  # of the module's own code, too
        why = f"{type(error).__name__}: {one_line(str(error))}"
        mend = "Its package has to be installed, or the folder that it is in on PYTHONPATH"
        raise UserError(f"method.kind={kind}: cannot be imported ({why}). {mend}") from None
    if not (inspect.isclass(method) and issubclass(method, vera.Method) and "kind" in vars(method)):
        raise UserError(
            f'method.kind={kind}: should be a method such as class {name}(vera.Method, kind="{name.lower()}")'
        )
    return vera.make_method(**settings | {"kind": method.kind})


def source_file(kind: str) -> Path | None:
    """The file of a class outside of the clone, without importing it (its package is imported); None where
    there is none, and for vera's methods."""
    path = kind.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(path) if path else None
    except Exception:  # of the package's own code: make_method says it in one line
        return None
    return Path(spec.origin) if spec and spec.origin else None
