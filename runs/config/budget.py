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
from runs.config.compose import Composer, name_of_row, plain
from runs.models import skeleton
from runs.record.configuration import ModelConfig
from runs.record.keys import is_own_setting
from runs.record.ledger import in_conf
from runs.record.override import Override

#: A setting fits a budget if the ratio of the two counts is at most this.
LARGEST_RATIO = 1.5
#: The number of a transformer block in the path of a module, as in model.layers.29.mlp.
BLOCK_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Rung:
    """A setting of a row, and how many parameters it trains.

    overrides: what sets it, such as method.rank=4. label: the same in short."""

    overrides: tuple[str, ...]
    label: str
    parameters: int

    def ratio_to(self, budget: int) -> float:
        """How far the count is from a budget: 1 where it is met, else above 1."""
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


def cell_of_budget(
    overrides: tuple[str, ...], composer: Composer
) -> tuple[tuple[str, ...], str]:
    """A cell's overrides with the settings in place of budget=N, and "".

    Where no setting of the row is near enough, the second is the reason. Raises
    UserError for a row without a ladder."""
    without_budget = tuple(line for line in overrides if Override(line).key != "budget")
    (line,) = set(overrides) - {*without_budget}
    budget = read_budget(Override(line).value)
    ladder = _ladder_of(without_budget, composer)
    return (*without_budget, *ladder.nearest(budget).overrides), ladder.misfit(budget)


@cache
def _ladder_of(overrides: tuple[str, ...], composer: Composer) -> Ladder:
    """The ladder of a row, once for all budgets of a sweep. A cell's task and seed do
    not matter to it."""
    return ladder_of(overrides, composer)


def ladder_of(overrides: tuple[str, ...], composer: Composer) -> Ladder:
    """The ladder of the row that overrides name, on their model.

    Raises UserError where conf/budget.yaml has no ladder for the row."""
    cfg = composer.compose(overrides)
    row = name_of_row(cfg)
    entries = in_conf("budget.yaml").get(row)
    if entries is None:
        rows = ", ".join(rows_with_ladder())
        raise UserError(
            f"budget=: no ladder for {row} in conf/budget.yaml. It has {rows}"
        )
    method, model = plain(cfg.method), plain(cfg.model)
    set_by_user = {Override(line).key for line in overrides}
    own_settings = {key: value for key, value in method.items() if is_own_setting(key)}
    rungs = []
    for settings in _settings_of_entries(entries):
        blocks = settings.pop("blocks", None)
        label = _label(settings, blocks)
        if blocks:
            sites = tuple(settings.get("sites") or own_settings["sites"])
            settings["sites"] = _sites_of_last_blocks(model, sites, blocks)
        if clash := set_by_user & {f"method.{key}" for key in settings}:
            raise UserError(f"budget= chooses {min(clash)}: give one of the two")
        count = _count_parameters(model, own_settings, settings)
        rungs.append(Rung(_overrides(settings), label, count))
    return Ladder(row, str(model["label"]), tuple(rungs))


def _settings_of_entries(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The settings of a ladder's entries, whose lists are all combined."""
    for entry in entries:
        lists = [
            value if isinstance(value, list) else [value] for value in entry.values()
        ]
        for values in itertools.product(*lists):
            yield dict(zip(entry, values, strict=True))


def _sites_of_last_blocks(
    model: ModelConfig, sites: tuple[str, ...], count: int
) -> list[str]:
    """The paths of the sites in the last transformer blocks of a model, so many."""
    from vera.sites import find_sites

    by_block: dict[int, list[str]] = {}
    for path in find_sites(_skeleton(model), sites):
        if match := BLOCK_NUMBER.search(path):
            by_block.setdefault(int(match[1]), []).append(path)
    last_sites = []
    for number in sorted(by_block)[-count:]:
        last_sites += by_block[number]
    return last_sites


def _skeleton(model: ModelConfig) -> Any:
    return skeleton(model, num_labels=2)


def _count_parameters(
    model: ModelConfig,
    own_settings: Mapping[str, Any],
    rung_settings: Mapping[str, Any],
) -> int:
    """How many parameters a method trains with these settings, without a model's head."""
    import vera

    values = dict(own_settings)
    for key, value in rung_settings.items():
        name, _, inner = key.partition(".")
        if inner:
            values[name] = {**(values.get(name) or {}), inner: value}
        else:
            values[name] = value
    if own_settings["kind"] == "peft":
        values["config"] = values.get("config") or {}
    base = _skeleton(model)
    method = vera.make_method(**values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft, of LayerNorms
        method.adapt(base)
    return method.count(base)


def _overrides(settings: Mapping[str, Any]) -> tuple[str, ...]:
    lines = []
    for key, value in settings.items():
        # a class of peft takes settings that its file does not list
        plus = "++" if key.startswith("config.") else ""
        lines.append(f"{plus}method.{key}={_text(value)}")
    return tuple(lines)


def _text(value: object) -> str:
    """A setting as an override has it."""
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _label(settings: Mapping[str, Any], blocks: int | None) -> str:
    """A rung's settings in short: "rank=4", "rank=1, sites=[value], last 2 blocks"."""
    parts = []
    for key, value in settings.items():
        if value is not None:
            parts.append(f"{key.removeprefix('config.')}={_text(value)}")
    if blocks:
        parts.append(f"last {blocks} blocks" if blocks > 1 else "last block")
    return ", ".join(parts) or "as it is"
