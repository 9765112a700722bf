"""The method of a run: one of vera's, or a class outside of the clone that a file of conf/method names. And
the rates of single parameters.

    kind: my_package.svft.SVFT      # in FOLDER/method/svft.yaml, with --config-dir FOLDER

The module is imported like any other: it is installed, or its folder is on PYTHONPATH. Only a file can name
a class; an override cannot, and vera, which reads adapter files from anywhere, imports none."""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
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


# --- rates and weight decays by patterns of parameters' names (train.lr_by, train.decay_by)


#: Names in an error message, at most.
SHOWN = 12


#: The keys of such mappings, and the key that a multiple in one, such as 16x, is of.
BASES = {"lr_by": "lr", "decay_by": "weight_decay"}


def rates_of(given: Any, base: float, key: str = "lr_by") -> dict[str, float] | None:
    """train.lr_by (or another key of BASES) with numbers alone, where 16x is 16 times the base; None for an
    empty one, as if it were not there. Raises UserError for what is no mapping of names to numbers."""
    rates = given or {}
    if not isinstance(rates, dict):
        raise UserError(f"train.{key}={rates}: should be a mapping of names to rates, such as {{B: 1e-2}}")
    numbers = dict[str, float]()
    for pattern, rate in rates.items():
        number = rate
        if isinstance(rate, str) and (times := re.fullmatch(r"(\d+(?:\.\d+)?)x", rate)):
            number = float(times[1]) * base
        if type(number) not in (int, float) or not 0 <= number < float("inf"):
            raise UserError(
                f"train.{key}.{pattern}={rate}: should be a number that is not negative, or such as 16x, 16"
                f" times train.{BASES[key]}"
            )
        numbers[str(pattern)] = float(number)  # `1` and `1.0` are one run
    return numbers or None


def patterns_of(names: Iterable[str], rates: Mapping[str, float], key: str = "lr_by") -> dict[str, str]:
    """The pattern that each trained parameter takes its rate from, by the parameter's name; the others have
    the rate of their group. key: of BASES.

    A pattern is the end of a name, from a dot on, and may have wildcards: B, query*.B, classifier.*. Raises
    UserError for one that no name has, listing the model's own, and for two that have a name in common."""
    names, found = list(names), dict[str, str]()
    for pattern in rates:
        matches = [name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not matches:
            kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
            more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
            raise UserError(
                f"train.{key}: no trained parameter's name ends with {pattern!r}. There are:"
                f" {', '.join(kinds[:SHOWN]) or 'none'}{more}"
            )
        for name in matches:
            if name in found:
                raise UserError(f"train.{key}: {found[name]!r} and {pattern!r} both name {name}")
            found[name] = pattern
    return found
