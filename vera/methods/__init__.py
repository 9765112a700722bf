"""Every adaptation method, one file each. A new file here is imported without being named anywhere."""

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

from vera.errors import AdapterError
from vera.methods.adapted import disable, frozen_extra, unload
from vera.methods.contract import METHODS, Method

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def make_method(kind: str, **settings: Any) -> Method:
    """The method of this kind with these settings, such as `make_method("vera", rank=256)`.

    Raises AdapterError for an unknown kind or setting, or a value that makes no sense.
    """
    if not isinstance(kind, str) or kind not in METHODS:
        raise AdapterError(f"no method of kind {kind!r}. Known: {', '.join(sorted(METHODS))}")
    own = METHODS[kind]
    annotated = {name for name, of in inspect.get_annotations(own).items() if "ClassVar" not in str(of)}
    if annotated - {field.name for field in dataclasses.fields(own)}:
        raise AdapterError(f"{own.__name__}: its settings need @dataclass(frozen=True) above the class")
    if lacking := sorted(own.__abstractmethods__):
        raise AdapterError(f"{own.__name__} lacks {' and '.join(lacking)}: see vera/methods/contract.py")
    own_fields = {field.name: field for field in dataclasses.fields(own)}
    unknown = sorted(set(settings) - set(own_fields))
    if unknown:
        raise AdapterError(f"method {kind} has no setting {unknown[0]!r}. It has: {', '.join(own_fields)}")
    required = [n for n, f in own_fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in settings]
    if missing:
        raise AdapterError(f"method {kind} needs {', '.join(missing)}")
    return own(**settings)
