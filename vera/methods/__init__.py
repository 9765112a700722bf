"""Every adaptation method, one file each. A new file here is imported without being
named anywhere."""

import importlib
import pkgutil
from typing import Any

from vera.errors import AdapterError, first_line
from vera.methods.adapted import disable, frozen_extra, unload
from vera.methods.contract import METHODS, Method, setting_types

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def make_method(kind: str, **settings: Any) -> Method:
    """Makes a method, such as `make_method("vera", rank=256)`.

    Args:
        kind: One of METHODS.
        settings: The fields of its class.

    Raises:
        AdapterError: The kind or a setting is unknown, or a value makes no sense.
    """
    if not isinstance(kind, str) or kind not in METHODS:
        raise AdapterError(
            f"no method of kind {kind!r}. Known: {', '.join(sorted(METHODS))}"
        )
    try:
        return METHODS[kind](**settings)
    except TypeError as error:
        fields = ", ".join(sorted(setting_types(METHODS[kind])))
        raise AdapterError(
            f"method {kind}: {first_line(error)}. It has: {fields}"
        ) from None
