"""The overrides of a command line, in Hydra's grammar: parsed and checked, with their lists expanded."""

import itertools
import re
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException

from runs.config.files import GROUPS
from runs.config.names import ALIASES
from runs.errors import UserError
from runs.record.text import first_line

#: The most runs of one command: a range with a zero too many is refused before it takes memory.
MOST_RUNS = 100_000
RUN_ID = "[0-9a-f]{12}"
#: Groups that every command has a choice of.
NEEDED = ("model", "task", "method", "launcher", "tracking")
_LOG = "the log of a run is runs/ID/log.txt in the output folder"
#: The beginnings of Hydra's own settings, and what to write here instead.
HYDRAS_OWN = {
    "hydra/launcher": "launcher=slurm (or local, ray), with settings such as launcher.partition=gpu",
    "hydra.launcher": "launcher=slurm (or local, ray), with settings such as launcher.partition=gpu",
    "hydra/sweeper": "a list makes a sweep (seed=0,1), and python -m runs.tune searches",
    "hydra.sweeper": "a list makes a sweep (seed=0,1), and python -m runs.tune searches",
    "hydra.mode": "a list makes a sweep, with -m and without",
    "hydra.searchpath": "--config-dir FOLDER",
    "hydra.job.chdir": "a run stays in the folder that it was started in",
    "hydra.job_logging": _LOG,
    "hydra/job_logging": _LOG,
    "hydra.hydra_logging": _LOG,
    "hydra/hydra_logging": _LOG,
    "hydra.verbose": f"{_LOG}, and debug=true shows tracebacks",
    "hydra.": "output=FOLDER says where files go; runs/ID/config.yaml in it is a run's configuration",
}


#: Mappings of which a key may be taken away.
MAPPINGS = ("method.config.", "model.settings.", "train.lr_by.", "train.decay_by.")


def split(arguments: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The overrides with one value by key, and by key those with a list: an override for each of its values.

    Raises UserError for an override that Hydra's grammar cannot parse, for a key that no override may set,
    and for a group or a list that is given twice."""
    fixed, lists = dict[str, str](), dict[str, list[str]]()
    for argument in arguments:
        override = _parse(argument)
        key = override.key_or_group
        if key in lists or (key in fixed and (key in GROUPS or override.is_sweep_override())):
            raise UserError(f"{key} is given twice: {argument} comes after another one")
        own = key == "seed" or key.startswith(("task.", "train.", "model.", "method."))
        if override.is_delete() and own and not key.startswith(MAPPINGS):
            raise UserError(f"{argument}: every run has that key. {key}=null, where it may be left out")
        if key == "train" and isinstance(override.value(), dict):
            raise UserError(f"{argument}: name each setting by itself, such as train.epochs=3")
        if override.is_sweep_override():
            lists[key] = [f"{override.get_key_element()}={value}" for value in _values(override)]
        else:
            fixed[key] = _line(override)
    return fixed, lists


def _line(override: Override) -> str:
    """The override as it was typed, with the value of a cast such as int(3)."""
    line, value = override.input_line or "", override.value()
    if "(" in line and isinstance(value, int | float):
        return f"{override.get_key_element()}={override.get_value_element_as_str()}"
    return line


def values(key: str, text: str) -> list[str]:
    """The overrides KEY=VALUE of a preset's list (hydra.sweeper.params)."""
    override = _parse(f"{key}={text}")
    if not override.is_sweep_override():
        return [override.input_line or ""]
    return [f"{key}={value}" for value in _values(override)]


def _parse(argument: str) -> Override:
    shown = argument if len(argument) <= 100 else f"{argument[:100]}..."
    try:
        (override,) = OverridesParser.create(_config_loader()).parse_overrides([_readable(argument)])
    except (RecursionError, ValueError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise UserError(f"{shown[:60]}: cannot be read ({why})") from None
    except HydraException:
        if argument.startswith("-"):
            raise UserError(f"no option {shown}; settings are KEY=VALUE, such as output=FOLDER") from None
        if (call := re.fullmatch(r"method=(\w+)\(([\w.=, -]*)\)", argument)) is not None:
            parts = [part.strip().partition("=") for part in call[2].split(",") if part.strip()]
            words = [f"method.{ALIASES.get(name, name)}={value}" for name, _, value in parts]
            meant = " ".join([f"method={call[1].lower()}", *words])
            raise UserError(f"{shown!r} is not KEY=VALUE. Did you mean {meant}?") from None
        raise UserError(
            f"{shown!r} is not KEY=VALUE (a list is KEY=a,b for a sweep, KEY=[a,b] for one value; a value"
            " with =, quotes or letters beyond ASCII takes quotes of its own: 'KEY=\"...\"')"
        ) from None
    _check(override, shown)
    return override


def _readable(argument: str) -> str:
    """The argument in the form that Hydra's grammar parses."""
    # A shell expands ~ only at the start of a word.
    argument = re.sub(r"=~(?=/|$)", lambda _: f"={Path.home()}", argument, count=1)
    # Hydra's examples write +experiment=NAME, for applications whose defaults do not list the group.
    argument = re.sub(r"^\+(?=experiment=)", "", argument)
    # Without quotes an id such as 123e45678901 would be a number.
    if match := re.fullmatch(rf"(\+*init_from=)({RUN_ID}(?:,{RUN_ID})*)", argument):
        return match[1] + ",".join(f"'{one}'" for one in match[2].split(","))
    return argument


def _config_loader() -> Any:
    """Hydra's loader, which lists the options of a group for glob()."""
    hydra = GlobalHydra.instance()
    return hydra.config_loader() if hydra.is_initialized() else None


def _check(override: Override, shown: str) -> None:
    """Raises UserError for a key that no override may set, with what to write instead."""
    key = override.key_or_group
    if not key or (not override.is_delete() and "=" not in shown):
        raise UserError(f"{shown!r} is not KEY=VALUE")
    if override.is_delete() and key in NEEDED:
        raise UserError(f"{shown}: every run has a {key}. {key}=NAME chooses another")
    if key.startswith("recipe."):  # or the result would stand under the recipe's name
        name = key.removeprefix("recipe.")
        raise UserError(
            f"{shown}: a recipe is a file; set train.{name}, method.{name} or task.{name}, whichever there is"
        )
    if re.match(r"hydra\b", key):
        instead = next((text for begin, text in HYDRAS_OWN.items() if f"{key}.".startswith(begin)), "")
        raise UserError(f"{shown}: not taken here. Instead: {instead or HYDRAS_OWN['hydra.']}")
    if key == "method.kind" and "." in str(override.value()):
        raise UserError(f"{shown}: a class is named by a file (--config-dir), no override")
    if "_target_" in key.split(".") or _names_target(override.value()):
        raise UserError(f"{shown}: _target_ names what is called, which no override does")


def _names_target(value: Any) -> bool:
    """Whether a value holds a mapping with _target_, by which Hydra calls the function that it names."""
    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, dict):
        return any(getattr(key, "text", key) == "_target_" for key in value) or any(
            map(_names_target, value.values())
        )
    return isinstance(value, list) and any(map(_names_target, value))


def _values(override: Override) -> list[str]:
    """The values of a list, as texts. Raises UserError for more than MOST_RUNS values, before they are made,
    and for a sweep that has no list of values."""
    line, value = override.input_line or "", override.value()
    if override.is_interval_sweep():
        raise UserError(f"{line}: an interval has no values to run through: a list, or python -m runs.tune")
    if isinstance(value, ChoiceSweep) and any(isinstance(one, Sweep) for one in value.list):
        raise UserError(f"{line}: choice() or range() beside or within a list: write one list, KEY=a,b")
    try:
        if (
            isinstance(value, RangeSweep)
            and len(list(itertools.islice(value.range(), MOST_RUNS + 1))) > MOST_RUNS
        ):
            raise UserError(f"{line}: more values than the {MOST_RUNS:,} runs that one command takes")
        texts = [str(text) for text in override.sweep_string_iterator()]
    except (HydraException, ValueError, ArithmeticError) as error:
        raise UserError(f"{line}: cannot be listed ({first_line(error)})") from None
    if not texts:
        raise UserError(f"{line}: nothing of that name")
    return texts
