"""The grammar of a command line's overrides: which cells and seeds they list."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException
from omegaconf import OmegaConf

from runs.command.errors import UserError
from runs.command.parser import expand_home
from runs.config.budget import replace_budget
from runs.config.compose import Composer
from runs.config.files import GROUPS, OPEN_MAPPINGS, Files, open_mapping_of
from runs.config.schema import LAUNCH_KEYS
from runs.config.starting_rate import asks_for_rule, replace_auto_rate
from runs.record.override import Override
from runs.record.text import first_line

RUN_ID = "[0-9a-f]{12}"
#: Overrides that are not taken, by a pattern of how they begin, and what to do instead.
ADVICE_ON_REFUSED = {
    r"[+~]*hydra\b": "docs/hydra.md has what stands in its place, such as "
    "launcher=slurm and output=FOLDER",
    rf"~(?!(recipe|experiment)(=|$)|({'|'.join(OPEN_MAPPINGS)})\.)": "every run has that key: "
    "KEY=VALUE, or KEY=null",
    r"\+*train=\{": "name each setting by itself, such as train.epochs=3",
    r"[+~]*recipe\.": "a recipe is a file: set train.KEY, method.KEY or task.KEY",
    r".*_target_|\+*(method\.kind|task\.reader)=.*\.": "a file names what is called "
    "(--config-dir)",
}
MAX_VALUES_OF_LIST = 100_000
#: A class of peft as a method. In a list of methods it is one word, whose colon Hydra may
#: have escaped; for Hydra it is two overrides.
PEFT_CLASS = re.compile(r"method=peft\\*:(\w+)")


@dataclass
class Grid:
    """What a command line lists.

    Attributes:
        cells: The overrides of each cell, in order.
        seeds: The override of each seed that all cells have; none where no list names
            seeds, so that the seed is one of a cell's overrides, or the default.
        preset: The name of the preset; "" for none.
        notes: Why a row has no cell for a budget, and which rate a rule has chosen, one
            sentence each.
    """

    cells: list[tuple[str, ...]]
    seeds: list[str] = field(default_factory=list)
    preset: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> tuple[str, ...]:
        """The overrides of the first run."""
        return (*self.cells[0], *self.seeds[:1])


def read_grid(overrides: Sequence[str], composer: Composer) -> Grid:
    """Reads the lists among a command line's overrides, and combines their values into
    cells. Nothing is composed that is not needed here: the preset, which may have lists
    of its own, and cells with a budget= or train.lr=auto. Raises UserError for an
    override that cannot be read, or is given twice."""
    fixed, typed_lists = _fixed_and_lists(overrides, composer.files)
    preset = Override(fixed.get("experiment", "")).value
    lists = dict[str, list[str]]()
    if preset:
        lists = _lists_of_preset(preset, composer, fixed_keys={*fixed})
    has_fold = "task.fold" in {*fixed, *lists, *typed_lists}
    if "task.folds" in fixed and not has_fold:
        overrides_of_folds = _overrides_of_folds(fixed["task.folds"])
        if overrides_of_folds:
            typed_lists["task.fold"] = overrides_of_folds
    lists |= typed_lists  # they replace the preset's lists for the same keys
    for key in lists:
        if key.partition(".")[0] in (*LAUNCH_KEYS, "experiment"):
            raise UserError(f"{key}= takes one value, for all runs of the command")
    seeds = lists.pop("seed", [])
    grid = Grid([], seeds, preset)
    for combination in itertools.product(*lists.values()):
        cell = split_classes_of_peft([*fixed.values(), *combination])
        cell = _with_recipe_file(cell, composer)
        misfit = ""
        if any(Override(text).key == "budget" for text in cell):
            cell, misfit = replace_budget(cell, composer)
        if misfit:
            grid.notes.append(f"left out: {misfit}")
            continue
        if any(asks_for_rule(Override(text)) for text in cell):
            cell, note = replace_auto_rate(cell, composer)
            if note not in grid.notes:
                grid.notes.append(note)
        grid.cells.append(cell)
    if not grid.cells:  # since no cell has a setting that fits its budget
        raise UserError(grid.notes[0].removeprefix("left out: "))
    return grid


def _overrides_of_folds(override: str) -> list[str]:
    """task.fold=0 to task.fold=4 for task.folds=5; none for null, and for a value that is
    no number of folds, which the checks of a configuration refuse later."""
    value = Override(override).value
    if not value.isdecimal() or int(value) > MAX_VALUES_OF_LIST:
        return []
    return [f"task.fold={fold}" for fold in range(int(value))]


def _fixed_and_lists(
    overrides: Sequence[str], files: Files
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The overrides with one value by their keys, and those with several: for each key
    one override a value. Raises UserError for an override that is not taken, cannot be
    read, or is given twice."""
    fixed = dict[str, str]()
    lists = dict[str, list[str]]()
    for argument in overrides:
        for pattern, advice in ADVICE_ON_REFUSED.items():
            if re.match(pattern, argument):
                raise UserError(f"{argument}: not taken here. Instead: {advice}")
        key, choices = split_override(argument, files)
        # of two single values of a setting the later one holds
        is_repeated = key in fixed and (key in GROUPS or len(choices) > 1)
        if key in lists or is_repeated:
            raise UserError(f"{key} is given twice: {argument} comes after another one")
        if len(choices) > 1:
            lists[key] = choices
        else:
            fixed[key] = choices[0]
    return fixed, lists


def _lists_of_preset(
    preset: str, composer: Composer, fixed_keys: set[str]
) -> dict[str, list[str]]:
    """The lists of a preset by their keys: one override a value. Those whose key has one
    value on the command line (`fixed_keys`) are left out."""
    cfg = composer.compose((f"experiment={preset}",))
    lists = dict[str, list[str]]()
    for key, text in (OmegaConf.select(cfg, "hydra.sweeper.params") or {}).items():
        if key not in fixed_keys:
            _, lists[key] = split_override(f"{key}={text}", composer.files)
    return lists


def split_classes_of_peft(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides with method=peft and method.config_class=CLASS in the place of
    method=peft:CLASS, as Hydra takes them."""
    words = list[str]()
    for text in overrides:
        peft_class = PEFT_CLASS.fullmatch(text)
        if peft_class:
            words += ["method=peft", f"method.config_class={peft_class[1]}"]
        else:
            words.append(text)
    return tuple(words)


def _with_recipe_file(
    overrides: tuple[str, ...], composer: Composer
) -> tuple[str, ...]:
    """The overrides with recipe=METHOD/MODEL in the place of recipe=MODEL: the recipe
    that the method's file in conf/method has for that model."""
    models = composer.files.choices("model")
    resolved = list[str]()
    for text in overrides:
        recipe = Override(text).unquoted_value
        if text.startswith("recipe=") and recipe in models:
            other_overrides = tuple(other for other in overrides if other != text)
            recipe_file = composer.recipe_for_model(other_overrides, recipe)
            resolved.append(f"recipe={recipe_file}")
        else:
            resolved.append(text)
    return tuple(resolved)


# --- one override


class _GroupOptions:
    """Tells Hydra's parser which names a group has, for glob(...)."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def get_group_options(self, group: str, **_: ObjectType | None) -> list[str]:
        """The names of a group's files."""
        return self._files.choices(group)


def split_override(argument: str, files: Files) -> tuple[str, list[str]]:
    """The key of an override, and one override for each value that it lists: itself, as
    Hydra reads it, where it has one value.

    Raises UserError for an override that Hydra's grammar cannot parse, for a key that no
    override may set, and for a list without values."""
    line = _as_hydra_reads_it(argument)
    override = _parse(line, argument, files)
    key = str(override.key_or_group)
    if not override.is_sweep_override():
        return key, [line]
    try:
        # range(...) is no list, and so has no elements that could be lists themselves
        elements = getattr(override.value(), "list", ())
        if any(isinstance(element, Sweep) for element in elements):
            raise ValueError(
                "choice() or range() beside or within a list: write one list, KEY=a,b"
            )
        # range(0,inf) has no end
        limit = MAX_VALUES_OF_LIST + 1
        values = [*itertools.islice(override.sweep_string_iterator(), limit)]
        if len(values) > MAX_VALUES_OF_LIST:
            raise ValueError(f"more than {MAX_VALUES_OF_LIST:,} values")
    except (HydraException, ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{argument}: cannot be listed ({first_line(error)})") from None
    if not values:
        raise UserError(f"{argument}: nothing of that name")
    return key, [f"{override.get_key_element()}={value}" for value in values]


def _as_hydra_reads_it(argument: str) -> str:
    """An override in Hydra's grammar. We also take what Hydra does not: `+experiment`, `~`
    for the home folder, and run ids that look like numbers."""
    key, equals, text = argument.partition("=")
    # `++` sets a key that exists and adds one that does not. Only open mappings may get
    # new keys: for all other keys, without `++`, Hydra refuses one that does not exist.
    if not open_mapping_of(key):
        key = key.removeprefix("++")
    # Hydra's examples write +experiment, for applications whose defaults lack the group
    if key == "+experiment":
        key = "experiment"
    line = f"{key}{equals}{expand_home(text)}"
    if match := re.fullmatch(rf"(\+*init_from=)({RUN_ID}(?:,{RUN_ID})*)", line):
        # in quotes, since Hydra would read 123e45678901 as a number
        ids = match[2].split(",")
        line = match[1] + ",".join(f"'{run_id}'" for run_id in ids)
    return line


def _parse(line: str, argument: str, files: Files) -> HydraOverride:
    """An override, parsed by Hydra. Raises UserError for what is none. argument: the
    override as it was typed, for the message."""
    group_options: Any = _GroupOptions(files)
    try:
        (override,) = OverridesParser.create(group_options).parse_overrides([line])
        has_value = override.is_delete() or "=" in line
        if override.key_or_group and has_value:
            return override
    except (HydraException, RecursionError, ValueError):
        pass
    quotes = (
        "a value with =, quotes or letters beyond ASCII takes quotes of its own: "
        "'KEY=\"...\"'"
    )
    raise UserError(f"{argument[:100]!r} is not KEY=VALUE. A list is KEY=a,b; {quotes}")
