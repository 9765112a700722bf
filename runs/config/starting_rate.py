"""`train.lr=auto`: a starting rule for the learning rate of a method.

The rule takes LoRA's rate on the same task and multiplies it by the method's usual ratio
to LoRA (conf/rates.yaml, from published trials). A run's configuration and id have the
rate itself, as if you had typed it."""

import math

from omegaconf import DictConfig

from runs.command.errors import UserError
from runs.config.compose import Composer, group_choices, name_of_row
from runs.record.ledger import in_conf
from runs.record.override import Override

#: The key that the rule is for, and the value that asks for it.
KEY = "train.lr"
RULE = "auto"


def asks_for_rule(override: Override) -> bool:
    """Whether an override is train.lr=auto or train.lr=auto:RATE."""
    value = override.unquoted_value
    return override.key == KEY and value.partition(":")[0] == RULE


def replace_auto_rate(
    overrides: tuple[str, ...], composer: Composer
) -> tuple[tuple[str, ...], str]:
    """A cell's overrides with a rate in the place of train.lr=auto, or of
    train.lr=auto:RATE, where RATE is LoRA's.

    Returns:
        The overrides, and a note that says where the rate comes from and what it may
        cost.

    Raises:
        UserError: For a row without a ratio, and where LoRA's rate is not known.
    """
    auto_override = next(text for text in overrides if asks_for_rule(Override(text)))
    other_overrides = tuple(text for text in overrides if text != auto_override)
    cfg = composer.compose(other_overrides)
    row = _row_of_trials(name_of_row(cfg))
    rule = in_conf("rates.yaml")
    ratio = 1.0 if row == "lora" else rule["ratios"].get(row)
    if ratio is None:
        raise UserError(
            f"{KEY}={RULE}: no published search has {row} beside LoRA "
            "(docs/starting_rates.md lists those that have). Type a rate"
        )
    lora_rate = _typed_rate(auto_override)
    if lora_rate is None:
        lora_rate = _rate_of_loras_recipe(cfg, other_overrides, composer)
    rate = float(f"{lora_rate * ratio:.2g}")
    note = f"{KEY}={RULE}: {rate:g} for {row}"
    if row != "lora":
        note += (
            f", LoRA's {lora_rate:g} times {ratio:g}. This is a rule to start from: on "
            f"average it loses {rule['loss']} to a search (docs/starting_rates.md)"
        )
    return (*other_overrides, f"{KEY}={rate:g}"), note


def _row_of_trials(row: str) -> str:
    """A row as records name it: peft_lokr for peft:LoKrConfig, whatever its settings."""
    kind, _, config_class = row.partition(":")
    if not config_class:
        return row
    return f"{kind}_{config_class.removesuffix('Config').lower()}"


def _typed_rate(auto_override: str) -> float | None:
    """LoRA's rate in the override train.lr=auto:RATE; None for train.lr=auto, which names
    no rate. Raises UserError for a rate that is no positive number."""
    text = Override(auto_override).unquoted_value.partition(":")[2]
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if rate > 0 and math.isfinite(rate):
        return rate
    raise UserError(
        f"{auto_override}: LoRA's rate should be a number, as in {KEY}={RULE}:3e-3"
    )


def _rate_of_loras_recipe(
    cfg: DictConfig, overrides: tuple[str, ...], composer: Composer
) -> float:
    """The rate that LoRA's recipe has for the model and task of a cell.

    cfg: the cell, composed from `overrides`. Raises UserError where no recipe has it."""
    recipe = group_choices(cfg).get("recipe")
    lora_overrides = []
    for text in overrides:
        override = Override(text)
        if override.group != "method" and override.key != "recipe":
            lora_overrides.append(text)
    lora_overrides.append("method=lora")
    # a recipe is optional: its name is chosen even if no file has it and cfg lacks it
    if recipe and cfg.get("recipe"):
        row, _, model = recipe.partition("/")
        is_of_one_row = row in composer.files.choices("method")
        # a recipe of one row, such as vera/minilm, may have a neighbour for LoRA
        if is_of_one_row and f"lora/{model}" in composer.files.choices("recipe"):
            recipe = f"lora/{model}"
        lora_overrides.append(f"recipe={recipe}")
    composed = composer.compose(tuple(lora_overrides))
    lora_recipe = composed.get("recipe") or {}
    rate_by_task = (lora_recipe.get("by_task") or {}).get("lr") or {}
    # without either, train.lr is the default for runs without a recipe
    if "lr" not in lora_recipe and composed.task.name not in rate_by_task:
        raise UserError(
            f"{KEY}={RULE}: no recipe has LoRA's rate for this model and task. Find it "
            f"with vera-bench tune method=lora, and type {KEY}={RULE}:RATE"
        )
    return float(composed.train.lr)
