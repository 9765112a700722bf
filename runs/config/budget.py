"""Budgets: which settings of a row train about N parameters (conf/budget.yaml).

`budget=N` on a command line stands for the overrides of the nearest rung of the row's
ladder. torch is imported in functions, because most command lines have no budget."""

import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from runs.command.errors import UserError
from runs.config.compose import Composer, name_of_row, to_plain
from runs.models import skeleton
from runs.record.configuration import ModelConfig
from runs.record.keys import is_own_setting
from runs.record.ledger import in_conf
from runs.record.override import Override, as_override_value

#: A setting fits a budget if the ratio of the two counts is at most this.
LARGEST_RATIO = 1.5
#: The number of a transformer block in the path of a module, as in model.layers.29.mlp.
BLOCK_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Rung:
    """Settings of a row, and how many parameters it trains with them.

    overrides: what sets them, such as method.rank=4. label: the same in short."""

    overrides: tuple[str, ...]
    label: str
    parameters: int

    def ratio_to(self, budget: int) -> float:
        """How far the count is from a budget: the larger of the two divided by the
        smaller, which is 1 where the budget is met."""
        larger = max(self.parameters, budget)
        return larger / min(self.parameters, budget)


@dataclass(frozen=True)
class Ladder:
    """The rungs of a row on a model, in the order of conf/budget.yaml."""

    row: str
    model: str
    rungs: tuple[Rung, ...]

    def nearest(self, budget: int) -> Rung:
        """The rung whose count is nearest to a budget, by its ratio."""
        return min(self.rungs, key=lambda rung: rung.ratio_to(budget))

    def misfit(self, budget: int) -> str:
        """Why no rung fits a budget; "" where one does."""
        rung = self.nearest(budget)
        if rung.ratio_to(budget) <= LARGEST_RATIO:
            return ""
        return (
            f"{self.row} has no setting near {budget:,} parameters on {self.model}: "
            f"the nearest trains {rung.parameters:,}"
        )


def rows_with_ladder() -> list[str]:
    """The rows that have a ladder in conf/budget.yaml."""
    return [*in_conf("budget.yaml")]


def read_budget(text: str) -> int:
    """The number of parameters that budget=N asks for. Raises UserError for another
    value."""
    if re.fullmatch(r"[1-9][\d_]*", text):
        return int(text)
    raise UserError(f"budget={text}: should be a number of parameters, such as 1000")


def replace_budget(
    overrides: tuple[str, ...], composer: Composer
) -> tuple[tuple[str, ...], str]:
    """A cell's overrides with the settings of its row that come nearest to N in the
    place of budget=N, even where they do not fit.

    Returns:
        The overrides, and why these settings do not fit the budget; "" where they do.

    Raises:
        UserError: For a row without a ladder.
    """
    other_overrides = []
    budget = 0
    for text in overrides:
        if Override(text).key == "budget":
            budget = read_budget(Override(text).value)
        else:
            other_overrides.append(text)
    ladder = _cached_ladder(tuple(other_overrides), composer)
    settings = ladder.nearest(budget).overrides
    return (*other_overrides, *settings), ladder.misfit(budget)


@cache
def _cached_ladder(overrides: tuple[str, ...], composer: Composer) -> Ladder:
    """`build_ladder`, once for all budgets of a sweep."""
    return build_ladder(overrides, composer)


def build_ladder(overrides: tuple[str, ...], composer: Composer) -> Ladder:
    """The ladder of the row and the model that overrides name: a rung for each of the
    settings that conf/budget.yaml has for the row.

    Raises UserError where conf/budget.yaml has no ladder for the row, and for an
    override that sets what a budget chooses."""
    cfg = composer.compose(overrides)
    row = name_of_row(cfg)
    entries = in_conf("budget.yaml").get(row)
    if entries is None:
        rows = ", ".join(rows_with_ladder())
        raise UserError(
            f"budget=: no ladder for {row} in conf/budget.yaml. It has {rows}"
        )
    method, model = to_plain(cfg.method), to_plain(cfg.model)
    given_keys = {Override(text).key for text in overrides}
    own_settings = {key: value for key, value in method.items() if is_own_setting(key)}
    rungs = []
    for settings in _settings_of_entries(entries):
        # how many of the last blocks are adapted; None: all of them
        blocks = settings.pop("blocks", None)
        label = _label_of_rung(settings, blocks)
        if blocks:
            sites = tuple(settings.get("sites") or own_settings["sites"])
            settings["sites"] = _sites_of_last_blocks(model, sites, blocks)
        clashing_keys = given_keys & {f"method.{key}" for key in settings}
        if clashing_keys:
            raise UserError(
                f"budget= chooses {min(clashing_keys)}: give one of the two"
            )
        count = _count_parameters(model, own_settings, settings)
        rungs.append(Rung(_as_overrides(settings), label, count))
    return Ladder(row, str(model["label"]), tuple(rungs))


def _settings_of_entries(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The settings of a ladder's rungs: for each entry of conf/budget.yaml, every
    combination of the values that it lists."""
    for entry in entries:
        choices = []
        for value in entry.values():
            choices.append(value if isinstance(value, list) else [value])
        for values in itertools.product(*choices):
            yield dict(zip(entry, values, strict=True))


def _sites_of_last_blocks(
    model: ModelConfig, sites: tuple[str, ...], count: int
) -> list[str]:
    """The paths of the modules that `sites` names in the last `count` transformer
    blocks of a model."""
    from vera.sites import find_sites

    paths_by_block: dict[int, list[str]] = {}
    for path in find_sites(_skeleton(model), sites):
        if match := BLOCK_NUMBER.search(path):
            paths_by_block.setdefault(int(match[1]), []).append(path)
    paths = []
    for block in sorted(paths_by_block)[-count:]:
        paths += paths_by_block[block]
    return paths


def _skeleton(model: ModelConfig) -> Any:
    """The model without weights. Its head is not counted, so num_labels may be any."""
    return skeleton(model, num_labels=2)


def _count_parameters(
    model: ModelConfig,
    own_settings: Mapping[str, Any],
    rung_settings: Mapping[str, Any],
) -> int:
    """How many parameters a method trains, without a model's head.

    Args:
        model: The model's configuration.
        own_settings: The settings of the method's file.
        rung_settings: Those that a rung sets instead; "config.r" is the key r of config.
    """
    import vera

    values = dict(own_settings)
    for key, value in rung_settings.items():
        name, _, inner_key = key.partition(".")
        if inner_key:
            values[name] = {**(values.get(name) or {}), inner_key: value}
        else:
            values[name] = value
    if own_settings["kind"] == "peft":
        # the file's null stands for a class of peft without settings
        values["config"] = values.get("config") or {}
    base = _skeleton(model)
    method = vera.make_method(**values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft warns of LayerNorms
        method.adapt(base)
    return method.count(base)


def _as_overrides(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings of a method as overrides."""
    overrides = []
    for key, value in settings.items():
        # a class of peft takes settings that its file does not list
        plus = "++" if key.startswith("config.") else ""
        overrides.append(f"{plus}method.{key}={as_override_value(value)}")
    return tuple(overrides)


def _label_of_rung(settings: Mapping[str, Any], blocks: int | None) -> str:
    """A rung's settings in short: "rank=4", "rank=1, sites=[value], last 2 blocks". A
    setting at null, which stands for the library's default, is left out. blocks: how
    many of the last blocks are adapted; None: all of them."""
    parts = []
    for key, value in settings.items():
        if value is not None:
            parts.append(f"{key.removeprefix('config.')}={as_override_value(value)}")
    if blocks == 1:
        parts.append("last block")
    elif blocks:
        parts.append(f"last {blocks} blocks")
    return ", ".join(parts) or "as it is"
