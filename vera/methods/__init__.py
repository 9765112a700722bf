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
    own_fields = {field.name for field in dataclasses.fields(own)}
    annotated = {name for name, of in inspect.get_annotations(own).items() if "ClassVar" not in str(of)}
    if annotated - own_fields:
        raise AdapterError(f"{own.__name__}: its settings need @dataclass(frozen=True) above the class")
    if lacking := sorted(own.__abstractmethods__):
        raise AdapterError(f"{own.__name__} lacks {' and '.join(lacking)}: see vera/methods/contract.py")
    try:
        inspect.signature(own).bind(**settings)
    except TypeError as error:
        raise AdapterError(f"method {kind}: {error}. It has: {', '.join(sorted(own_fields))}") from None
    return own(**settings)
