"""The overrides of a command line, in Hydra's grammar: parsed and checked, with their lists expanded."""

import itertools
import re
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException

from runs.command import at_home
from runs.config.files import GROUPS
from runs.config.names import ALIASES
from runs.errors import UserError
from runs.record.text import first_line

RUN_ID = "[0-9a-f]{12}"
#: The most runs of one command: a range with a zero too many is refused before it takes memory.
MOST_RUNS = 100_000
#: Groups that every command has a choice of.
NEEDED = ("model", "task", "method", "launcher", "tracking")
#: Mappings of which a key may be taken away.
MAPPINGS = ("method.config.", "model.settings.", "train.lr_by.", "train.decay_by.")
#: The beginnings of Hydra's own settings, and what to write here instead.
HYDRAS_OWN = {
    r"hydra[/.]launcher": "launcher=slurm (or local, ray), with settings such as launcher.partition=gpu",
    r"hydra[/.]sweeper": "a list makes a sweep (seed=0,1), and python -m runs.tune searches",
    r"hydra\.mode": "a list makes a sweep, with -m and without",
    r"hydra\.searchpath": "--config-dir FOLDER",
    r"hydra\.job\.chdir": "a run stays in the folder that it was started in",
    r"hydra[/.](\w+_logging|verbose)": "the log of a run is runs/ID/log.txt; debug=true shows tracebacks",
    r"hydra\b": "output=FOLDER says where files go; runs/ID/config.yaml in it is a run's configuration",
}


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
        if override.is_sweep_override():
            lists[key] = _values(override)
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
    return _values(override) if override.is_sweep_override() else [override.input_line or ""]


def _parse(argument: str) -> Override:
    try:
        (override,) = OverridesParser.create(_config_loader()).parse_overrides([_readable(argument)])
    except (HydraException, RecursionError, ValueError):
        meant = ""
        if call := re.fullmatch(r"method=(\w+)\(([\w.=, -]*)\)", argument):  # as Python: method=LoRA(r=8)
            words = [word.strip().partition("=") for word in call[2].split(",") if word.strip()]
            own = " ".join(f"method.{ALIASES.get(name, name)}={value}" for name, _, value in words)
            meant = f" Did you mean method={call[1].lower()} {own}?"
        raise UserError(
            f"{argument[:100]!r} is not KEY=VALUE.{meant} A list is KEY=a,b for a sweep, KEY=[a,b] for one"
            " value; a value with =, quotes or letters beyond ASCII takes quotes of its own: 'KEY=\"...\"'"
        ) from None
    _check(override, argument)
    return override


def _readable(argument: str) -> str:
    """The argument in the form that Hydra's grammar parses."""
    key, equals, text = argument.partition("=")
    # Hydra's examples write +experiment=NAME, for applications whose defaults do not list the group.
    argument = f"{key.replace('+experiment', 'experiment')}{equals}{at_home(text)}"
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
    own = key == "seed" or key.startswith(("task.", "train.", "model.", "method."))
    if override.is_delete() and own and not key.startswith(MAPPINGS):
        raise UserError(f"{shown}: every run has that key. {key}=null, where it may be left out")
    if key == "train" and isinstance(override.value(), dict):
        raise UserError(f"{shown}: name each setting by itself, such as train.epochs=3")
    if key.startswith("recipe."):  # or the result would stand under the recipe's name
        name = key.removeprefix("recipe.")
        raise UserError(
            f"{shown}: a recipe is a file; set train.{name}, method.{name} or task.{name} instead"
        )
    if instead := next((text for begin, text in HYDRAS_OWN.items() if re.match(begin, key)), ""):
        raise UserError(f"{shown}: not taken here. Instead: {instead}")
    if "_target_" in shown or (key == "method.kind" and "." in str(override.value())):
        raise UserError(f"{shown}: a file names what is called (--config-dir), no override does")


def _values(override: Override) -> list[str]:
    """An override for each value of a list. Raises UserError for a sweep that has no list of values, and for
    more than MOST_RUNS values, before they are made."""
    line, value = override.input_line or "", override.value()
    if override.is_interval_sweep():
        raise UserError(f"{line}: an interval has no values to run through: a list, or python -m runs.tune")
    if isinstance(value, ChoiceSweep) and any(isinstance(one, Sweep) for one in value.list):
        raise UserError(f"{line}: choice() or range() beside or within a list: write one list, KEY=a,b")
    try:
        if isinstance(value, RangeSweep) and [*itertools.islice(value.range(), MOST_RUNS, MOST_RUNS + 1)]:
            raise UserError(f"{line}: more values than the {MOST_RUNS:,} runs that one command takes")
        texts = [f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()]
    except (HydraException, ValueError, ArithmeticError) as error:
        raise UserError(f"{line}: cannot be listed ({first_line(error)})") from None
    if not texts:
        raise UserError(f"{line}: nothing of that name")
    return texts
