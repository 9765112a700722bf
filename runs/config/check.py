"""A composed configuration, checked against its types (runs/config/schema.py) and the files that it is of."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from runs.command import mistake
from runs.config.files import Files, groups_of, plain
from runs.config.schema import Config
from runs.errors import UserError
from runs.record.text import first_line


def checked(cfg: DictConfig, overrides: tuple[str, ...], files: Files) -> tuple[dict[str, Any], list[str]]:
    """A run's configuration as plain values, checked and converted; and the overrides that set the method,
    the training or the model's settings differently from their files. Raises UserError for a mistake."""
    try:
        config: dict[str, Any] = {key: plain(cfg[key]) for key in cfg if key in Config.model_fields}
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {first_line(error)}") from None
    if config["method"].get("kind") != "lora":
        config["method"].pop("scaling", None)  # a preset of LoRA's rows set it, and METHODS= chose another
    changed = _changed(config, cfg, overrides, files)
    try:
        values = Config.model_validate(config).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise UserError(mistake(error)) from None
    for part in ("task", "method"):  # open ones: their keys in the order of their files
        values[part] = {key: values[part][key] for key in config[part]}
    return values | {"recipe": values.pop("recipe", {})}, changed


def _changed(config: dict[str, Any], cfg: DictConfig, overrides: tuple[str, ...], files: Files) -> list[str]:
    """The overrides that differ from the files. In `config`, a whole number for a key with a fraction becomes
    a float: `1` and `1.0` are one run. Raises UserError where a value has another type than the one in the
    file of a task or method, and where its row or task would be another one."""
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
        wanted, parent, (*path, last) = plain(OmegaConf.select(default, key)), config, key.split(".")
        for part in path:
            parent = parent.get(part) or {}
        if wanted is not None and last in parent and not key.startswith("train."):
            parent[last] = _of_type(wanted, key, parent[last])
        if parent.get(last) != wanted and not key.startswith("task."):
            changed.append(line)
        if (key == "method.redrawn" and line in changed) or (
            "${" in text and key == "method.projection_seed"
        ):
            row = "a row of their own, method=vera_redrawn"
            raise UserError(f"{line}: matrices that are drawn anew for every seed are {row}")
    return changed


def _of_type(wanted: Any, key: str, value: Any) -> Any:
    """The value, where it is null or has the type of the file's value."""
    floats = isinstance(wanted, list) and all(type(one) is float for one in wanted)
    kind: Any = list[float] if floats else type(wanted)
    try:
        return TypeAdapter(kind | None).validate_python(value, strict=True)
    except ValidationError as error:
        raise UserError(mistake(error, within=key)) from None
