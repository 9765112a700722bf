"""Checks of a configuration that need more than its types (runs/config/schema.py)."""

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

import tasks
from runs.command import as_word, mistake
from runs.config.files import Files, alpha_of, groups_of, plain
from runs.config.names import as_sweep
from runs.config.schema import Config
from runs.errors import UserError
from runs.record import from_recipe
from runs.record.text import first_line

#: Types in a user's words.
TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", list: "a list [a,b]"}


def checked(cfg: DictConfig, overrides: tuple[str, ...], files: Files) -> tuple[dict[str, Any], list[str]]:
    """A run's configuration as plain values, checked and converted; and the overrides that set the method,
    the training or the model's settings differently from their files. Raises UserError for a mistake."""
    try:
        config: dict[str, Any] = {key: plain(cfg[key]) for key in cfg if key in Config.model_fields}
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {first_line(error)}") from None
    if config["method"]["kind"] != "lora":
        config["method"].pop("scaling", None)  # a preset of LoRA's rows set it, and METHODS= chose another
    changed = _changed(config, cfg, overrides, files)
    try:
        values = Config.model_validate(config).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        several = as_sweep(".".join(map(str, first["loc"])), as_word(first["input"]))
        raise UserError(mistake(error) + several) from None
    if (family := values["task"]["family"]) not in tasks.families():
        raise UserError(f"task.family={family}: should be one of {', '.join(tasks.families())}")
    for part in ("task", "method"):  # open ones: their keys in the order of their files
        values[part] = {key: values[part][key] for key in config[part]}
    _check_followed(values, cfg)
    return values | {"recipe": values.pop("recipe", {})}, changed


def _changed(config: dict[str, Any], cfg: DictConfig, overrides: tuple[str, ...], files: Files) -> list[str]:
    """The overrides that differ from the files. In `config`, a whole number for a key with a fraction becomes
    a float: `1` and `1.0` are one run. Raises UserError where a value has another type than the one in the
    file of a task or method, and for own data with the name of another task."""
    own, groups = ("task.", "method.", "train.", "model.settings"), groups_of(overrides)
    given = [line for line in overrides if line.lstrip("+~").startswith(own)]
    if not given:
        return []
    # In tables, recipes and counts of rows a task is known by its name alone
    name, renamed = config["task"]["name"], any(line.lstrip("+").startswith("task.name=") for line in given)
    if renamed and name in files.choices("task") and f"task={name}" not in groups:
        raise UserError(f"task.name={name}: conf/task has another task of that name: give your data another")
    default, changed = files.defaults(groups), []
    with open_dict(default):
        default.recipe = cfg.get("recipe")  # of this class of peft
    for line in given:
        key, _, text = line.lstrip("+~").partition("=")
        wanted, node = plain(OmegaConf.select(default, key)), cast(Any, config)
        for part in key.split("."):
            parent, node = node, node.get(part) if isinstance(node, dict) else None
        if isinstance(wanted, float) and type(node) is int:
            parent[part] = node = float(node)
        elif isinstance(node, list) and isinstance(wanted, list) and all(type(x) is float for x in wanted):
            parent[part] = node = [float(x) if type(x) is int else x for x in node]
        if node != wanted and not key.startswith("task."):
            changed.append(line)
        if not (None in (wanted, node) or type(node) is type(wanted) or key.startswith("train.")):
            kind = TYPES.get(type(wanted), "a mapping {a:b}")
            raise UserError(f"{line}: should be {kind}, such as {as_word(wanted)}{as_sweep(key, text)}")
    return changed


def _check_followed(config: dict[str, Any], cfg: DictConfig) -> None:
    """Raises UserError where a setting of a method contradicts those that it follows from: LoRA's alpha,
    VeRA's projection_seed. cfg: the configuration, not resolved."""
    method = config["method"]
    if method.get("scaling") == "proportional":
        alpha, rank = from_recipe(config, "alpha", 8), from_recipe(config, "rank", 8)
        if method["alpha"] != (wanted := alpha_of("proportional", alpha, rank, method["rank"])):
            raise UserError(
                f"method.alpha={method['alpha']} with method.scaling=proportional, which makes it {wanted} at"
                f" rank {method['rank']}: leave one of the two out"
            )
    if "redrawn" not in method:
        return
    raw = str(OmegaConf.to_container(cfg.method, resolve=False)["projection_seed"])  # type: ignore[index, call-overload]
    follows = "seed" in raw
    if method["redrawn"] and not (follows and method["projection_seed"] == config["seed"]):
        mend = "matrices that are drawn anew follow the seed, as with method=vera_redrawn alone"
        raise UserError(f"method.projection_seed={raw} with method.redrawn=true: {mend}")
    if follows and not method["redrawn"]:
        mend = "matrices that are drawn anew for every seed are a row of their own, method=vera_redrawn"
        raise UserError(f"method.projection_seed={raw}: {mend}")
