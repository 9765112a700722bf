"""The overrides of a command line, in Hydra's grammar: parsed and checked, with their lists expanded."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException

from runs.command import at_home
from runs.config.files import GROUPS
from runs.errors import UserError
from runs.record.text import first_line

RUN_ID = "[0-9a-f]{12}"
#: The most runs of one command: a range with a zero too many is refused before it takes memory.
MOST_RUNS = 100_000
#: What is not taken, by how it begins, and what to write instead.
REFUSED = {
    r"[+~]*hydra[/.]launcher": "launcher=slurm (or local, ray), with settings such as launcher.partition=gpu",
    r"[+~]*hydra[/.]sweeper": "a list makes a sweep (seed=0,1), and python -m runs.tune searches",
    r"[+~]*hydra\.mode": "a list makes a sweep, with -m and without",
    r"[+~]*hydra\.searchpath": "--config-dir FOLDER",
    r"[+~]*hydra\.job\.chdir": "a run stays in the folder that it was started in",
    r"[+~]*hydra[/.](\w+_logging|verbose)": "a run's log is runs/ID/log.txt; debug=true shows tracebacks",
    r"[+~]*hydra\b": "output=FOLDER says where files go; a run's configuration is runs/ID/config.yaml in it",
    r"~(model|task|method|launcher|tracking)(=|$)": "every run has one, and GROUP=NAME chooses another",
    r"~(seed|(task|train|model|method)\.)(?!(config|settings|lr_by|decay_by)\.)": (
        "every run has that key: KEY=null, where it may be left out"
    ),
    r"\+*train=\{": "name each setting by itself, such as train.epochs=3",
    r"[+~]*recipe\.": "a recipe is a file: set train.KEY, method.KEY or task.KEY",
    r".*_target_|\+*method\.kind=.*\.": "a file names what is called (--config-dir), no override does",
}


def split(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
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
            fixed[key] = override.input_line or ""
    return fixed, lists


def values(key: str, text: str) -> list[str]:
    """The overrides KEY=VALUE of a preset's list (hydra.sweeper.params)."""
    override = _parse(f"{key}={text}")
    return _values(override) if override.is_sweep_override() else [override.input_line or ""]


def _parse(argument: str) -> Override:
    hydra = GlobalHydra.instance()  # whose loader lists the options of a group for glob()
    loader: Any = hydra.config_loader() if hydra.is_initialized() else None
    try:
        (override,) = OverridesParser.create(loader).parse_overrides([_readable(argument)])
        if not override.key_or_group or not (override.is_delete() or "=" in argument):
            raise ValueError
    except (HydraException, RecursionError, ValueError):
        quotes = "a value with =, quotes or letters beyond ASCII takes quotes of its own: 'KEY=\"...\"'"
        raise UserError(f"{argument[:100]!r} is not KEY=VALUE. A list is KEY=a,b; {quotes}") from None
    if instead := next((text for begin, text in REFUSED.items() if re.match(begin, argument)), ""):
        raise UserError(f"{argument}: not taken here. Instead: {instead}")
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


def _values(override: Override) -> list[str]:
    """An override for each value of a list. Raises UserError for a sweep that has no list of values."""
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
