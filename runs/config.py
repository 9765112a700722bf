"""From command-line words to the runs they mean: Hydra composes, this file types, checks and multiplies.

No torch here: the plan must answer at once. Hydra's compose API is used rather than its main(): a sweep is
expanded before anything starts (so that it can be counted, planned and checked), and errors are one line."""

import contextlib
import copy
import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import tasks
from runs.errors import UserError
from runs.record import (
    NOT_SETTINGS,
    SCALINGS,
    cache_folder,
    from_recipe,
    proportional_alpha,
    row_label,
    write_atomically,
)

CONF = Path(__file__).parent.parent / "conf"
#: The sites of each class of peft where none are named. Read as a file: importing vera would import torch.
PEFT_SITES = Path(__file__).parent.parent / "vera" / "methods" / "peft_sites.json"
GROUPS = ("model", "task", "method", "recipe", "paper")
#: Of one command. A number with a zero too many is refused before it takes memory.
MOST_RUNS = 100_000


@dataclass
class Model:
    """A pretrained backbone: from the hub, a local folder (path), or an installed package. See conf/model."""

    name: str
    label: str
    modality: str
    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    package: str | None = None
    wheel: str | None = None  # name==version of a wheel that holds the model as GGUF
    sha256: str | None = None
    # Checked against the folder's config.json; null: whatever it is
    architecture: dict[str, Any] | None = None
    settings: Any = None  # a mapping: of the configuration, other than the pretrained ones
    quantise: str | None = None  # nf4: the linear layers in 4 bit


@dataclass
class Train:
    """What defines the result. See conf/config.yaml."""

    epochs: int
    effective_batch: int
    max_length: int
    lr: float
    lr_head: float
    weight_decay: float
    decay_all: bool
    adam_eps: float
    warmup_ratio: float
    warmup_steps: int | None
    schedule: str
    clip: float | None
    precision: str
    max_steps: int | None
    evaluate_every: int


@dataclass
class Config:
    """The whole configuration. Task and method are open: their files say which keys there are, and of what
    type."""

    model: Model
    task: dict[str, Any]
    method: dict[str, Any]
    train: Train
    seed: int
    data_seed: int
    select: str
    keep: str
    adapter_precision: str
    init_from: str | None
    device: str
    micro_batch: int | None
    gradient_checkpointing: bool
    eval_batch: int
    checkpoint_minutes: float
    output: str
    debug: bool
    recipe: dict[str, Any] = field(default_factory=dict)


def _recipe(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    return from_recipe(_root_, key, default)


def _alpha(scaling: str, alpha: float, of_rank: int, rank: int) -> float:
    """LoRA's alpha at a rank, from the recipe's alpha and rank. See conf/method/lora.yaml."""
    return proportional_alpha(alpha, of_rank, rank) if scaling == "proportional" else alpha


def _keep(*, _root_: DictConfig) -> str:
    """The task's word on what stays on disk, or else the method's; but a method that keeps nothing keeps
    nothing."""
    method, task = str(_root_.method.keep), _root_.task.get("keep")
    return method if method == "none" or task is None else str(task)


def _peft_sites(config_class: str) -> list[str]:
    known: dict[str, list[str]] = json.loads(PEFT_SITES.read_text(encoding="utf-8"))
    return known.get(config_class, known["others"])


OmegaConf.register_new_resolver("peft_sites", _peft_sites, replace=True)
OmegaConf.register_new_resolver("recipe", _recipe, replace=True)
OmegaConf.register_new_resolver("alpha", _alpha, replace=True)
OmegaConf.register_new_resolver("keep", _keep, replace=True)
ConfigStore.instance().store(name="schema", node=Config)


@dataclass(frozen=True)
class Run:
    """One run to do: its cell, its seed, and its resolved configuration as plain values.

    start: the run whose adapter this one starts from (init_from=ROW@TASK), to be done before it.
    changed: the words of the command line that gave the method or the training another setting than their
    files.
    words: a command line that means this run but for its seed. Two that mean the same are one run.
    """

    row: str
    model: str
    task: str
    seed: int
    recipe: str
    paper: str | None
    config: dict[str, Any]
    start: "Run | None" = None
    changed: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list, compare=False)

    @property
    def method(self) -> dict[str, Any]:
        """The method's own settings, as vera.make_method takes them."""
        return {key: value for key, value in self.config["method"].items() if key not in NOT_SETTINGS}

    @property
    def label(self) -> str:
        return f"{row_label(self.config)} on {self.config['task']['label']}, seed {self.seed}"


def starts(runs: list[Run]) -> list[Run]:
    """The runs that others start from, each once."""
    found: list[Run] = []
    for run in runs:
        if run.start and run.start not in found:
            found.append(run.start)
    return found


def with_starts(runs: list[Run]) -> list[Run]:
    """The runs in an order that can be done: those that others start from come first, whether asked for or
    not."""
    first = starts(runs)
    return [*first, *(run for run in runs if run not in first)]


def choices(group: str) -> list[str]:
    """The files of a configuration group."""
    return sorted(
        p.relative_to(CONF / group).with_suffix("").as_posix() for p in (CONF / group).rglob("*.yaml")
    )


def expand(arguments: list[str]) -> list[Run]:
    """Every run that the command line means, in order. Raises UserError for whatever is wrong with it.

    A preset (paper=) brings lists of its own; the command line's word on the same key wins. Composing takes a
    tenth of a second a cell, so the answer is kept under a hash of conf/ and of the words.
    """
    # Only at the start of a word would the shell have expanded it.
    arguments = [
        re.sub(r"=~(?=/|$)", lambda _: f"={Path.home()}", argument, count=1) for argument in arguments
    ]
    digest = hashlib.sha256(repr(arguments).encode())
    for path in [Path(__file__), PEFT_SITES, *sorted(CONF.rglob("*.yaml"))]:
        digest.update(path.read_bytes())
    # An environment variable may change between two calls: nothing that reads one is kept.
    reads_environment = any(
        "oc.env" in text for text in [*arguments, *(p.read_text() for p in CONF.rglob("*.yaml"))]
    )
    kept = cache_folder() / "plans" / f"{digest.hexdigest()[:24]}.json"
    if not reads_environment and kept.is_file():
        try:
            found = json.loads(kept.read_text())
            return [Run(**run | {"start": Run(**run["start"]) if run["start"] else None}) for run in found]
        except (ValueError, TypeError, OSError):
            pass  # a damaged cache is composed anew
    runs = _expand(arguments)
    if not reads_environment and len(runs) > 1:
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, no more
            write_atomically(kept, json.dumps([dataclasses.asdict(run) for run in runs]))
    return runs


def _expand(arguments: list[str]) -> list[Run]:
    parsed = [_parse(argument) for argument in arguments]
    fixed = {_key(o): o.input_line or "" for o in parsed if not o.is_sweep_override()}
    swept = {_key(o): [f"{_key(o)}={v}" for v in _values(o)] for o in parsed if o.is_sweep_override()}
    for line in (o.input_line or "" for o in parsed if _key(o) == "init_from" and o.is_sweep_override()):
        # An id may look like a number
        swept["init_from"] = [f"init_from={word}" for word in _word(line).split(",")]
    if "paper" in swept:
        raise UserError("paper= takes one preset at a time")
    preset = _word(fixed["paper"]) if "paper" in fixed else None
    if preset == "null":
        preset = None
    params: dict[str, list[str]] = {}
    if preset:
        _check_choice("paper", preset)
        hydra = _compose((f"paper={preset}",)).hydra
        for key, text in (hydra.sweeper.params or {}).items():
            if key not in fixed:
                params[key] = [f"{key}={v}" for v in str(text).split(",")]
    params |= swept
    for line in [*fixed.values(), *itertools.chain.from_iterable(params.values())]:
        key, _, value = line.partition("=")
        if key in ("model", "task", "method", "recipe"):
            _check_choice(key, value)
    # Seeds last and without composing anew: a composition takes a tenth of a second, and a seed changes
    # nothing else.
    seeds: list[str | None] = [*params.pop("seed", [])] or [fixed.pop("seed", None)]
    count = math.prod(map(len, params.values())) * len(seeds)
    if count > MOST_RUNS:
        raise UserError(
            f"these words mean {count:,} runs, and one command takes at most {MOST_RUNS:,}: give shorter"
            " lists"
        )
    runs = []
    for combination in itertools.product(*params.values()):
        overrides = (*fixed.values(), *combination)
        cfg = _compose_with_recipe(overrides)
        picked = cfg.hydra.runtime.choices
        recipe = str(picked.get("recipe")) if cfg.get("recipe") else "defaults"
        if preset and recipe == "defaults":
            wanted = f"{picked['method']}/{picked['model']}"
            raise UserError(
                f"preset {preset} has no recipe for {wanted}. Write conf/recipe/{wanted}.yaml, "
                "or choose one of its models or methods (METHODS=, MODEL=)"
            )
        # Resolving takes time, too. Where nothing but data_seed follows the seed, runs differ by these two
        # numbers alone.
        raw: Any = OmegaConf.to_container(cfg, resolve=False)
        alike = raw["data_seed"] == "${seed}" and len(re.findall(r"\$\{(data_)?seed", str(raw))) == 1
        first: Run | None = None
        for seed in seeds:
            if seed is not None:
                cfg.seed = _seed(seed)
            if first and alike:
                config = copy.deepcopy(first.config) | {"seed": cfg.seed, "data_seed": cfg.seed}
                runs.append(dataclasses.replace(first, seed=cfg.seed, config=config))
                continue
            first = _make_run(cfg, picked, recipe, preset, overrides)
            runs.append(first)
    return runs


def _compose_with_recipe(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration; a row without a recipe for this model takes that of the row that its file names."""
    cfg = _compose(overrides)
    picked, other = cfg.hydra.runtime.choices, cfg.method.get("recipe")
    named = any(line.startswith("recipe=") for line in overrides)
    borrows = not (cfg.get("recipe") or named or other is None) and f"{other}/{picked['model']}" in choices(
        "recipe"
    )
    if borrows:
        cfg = _compose((*overrides, f"recipe={other}/{picked['model']}"))
    if cfg.get("recipe"):
        check_recipe(str(cfg.hydra.runtime.choices["recipe"]), str(CONF), _written())
    return cfg


@cache
def check_recipe(name: str, conf: str, written: int) -> None:
    """Raises UserError for a key of a recipe file that nothing reads, and for a task that there is none of.

    A key that is misspelt would leave the default value in its place, under the recipe's name. name:
    ROW/MODEL; of the methods, the file of ROW and those that it begins with count. conf, written: what the
    answer may be kept for."""
    place, recipe = f"conf/recipe/{name}.yaml", _yaml("recipe", name)
    row = name.partition("/")[0]
    readers = [CONF / "config.yaml", *sorted(CONF.glob("task/*.yaml")), *_method_files(row)]
    known = sorted({key for path in readers for key in re.findall(r"\$\{recipe:([a-z_]+)", path.read_text())})

    def check(keys: Any, allowed: list[str], where: str, what: str = "key") -> None:
        for key in keys:
            if key not in allowed:
                close = _did_you_mean(str(key), allowed) or f" Known: {', '.join(allowed)}"
                raise UserError(f"{place}: no {what} {str(key)!r}{where}.{close}")

    check(recipe, [*known, "source", "chosen", "by_task"], f" for the row {row}")
    for part in ("chosen", "by_task"):
        inner = recipe.get(part) or {}
        if not isinstance(inner, dict):
            raise UserError(f"{place}: {part} should be a mapping, such as {{lr: ...}}")
        check(inner, known, f" for the row {row}, in {part}")
    for key, by_task in (recipe.get("by_task") or {}).items():
        if not isinstance(by_task, dict):
            raise UserError(f"{place}: by_task: {key} should be a mapping, such as {{rte: ...}}")
        check(by_task, choices("task"), f", in by_task: {key}", "task")


def _method_files(row: str) -> list[Path]:
    """A row's file, and those that it begins with."""
    if row not in choices("method"):
        raise UserError(f"conf/recipe/{row}: no method of that name.{_did_you_mean(row, choices('method'))}")
    begins = [name for name in _yaml("method", row).get("defaults", []) if name != "_self_"]
    return [CONF / "method" / f"{row}.yaml", *itertools.chain.from_iterable(map(_method_files, begins))]


def _yaml(group: str, name: str) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    return dict(found)


def parts(model: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's configuration and a method's own settings, for what needs no task."""
    cfg = _compose((f"model={model}", f"method={method}"))
    found: list[Any] = [OmegaConf.to_container(part, resolve=True) for part in (cfg.model, cfg.method)]
    return found[0], {key: value for key, value in found[1].items() if key not in NOT_SETTINGS}


def _make_run(
    cfg: DictConfig, picked: Any, recipe: str, preset: str | None, overrides: tuple[str, ...]
) -> Run:
    try:
        config: dict[str, Any] = {key: _plain(cfg[key]) for key in cfg if key in _OWN}
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {_first_line(error)}") from None
    changed = _check_types(config, overrides, recipe)
    _check_values(config)
    _check_where_from(config, cfg)
    method, row = config["method"], picked["method"]
    if method["kind"] == "peft":
        method["config"] = method["config"] or {}
        if not isinstance(method["config"], dict):
            raise UserError(f"method.config={method['config']}: should be a mapping, such as {{r: 8}}")
        method["label"] = method["label"] or _peft_label(method)
    if row == "peft":  # each method of peft's is a row of its own
        row = f"peft_{_slug(method['label'])}"
    start = None
    for line in overrides:  # an id such as 123e45678901 is no number
        if re.fullmatch(r"init_from=[0-9a-f]{12}", line):
            config["init_from"] = line.partition("=")[2]
    if config["init_from"]:
        name, start = _start(config, picked, overrides)
        if config["init_from"] != method.get("init_from"):
            row = f"{row}_from_{_slug(name)}"
        method["label"] += f" from {name}"
    groups = ("method", "model", "task")
    words = [f"{group}={picked[group]}" for group in groups] + [
        o for o in overrides if o.partition("=")[0] not in groups
    ]
    return Run(row, picked["model"], picked["task"], cfg.seed, recipe, preset, config, start, changed, words)


def _peft_label(method: dict[str, Any]) -> str:
    """Such as "IA3", or "Lora use_dora=True"."""
    settings = " ".join(f"{key}={value}" for key, value in sorted(method["config"].items()))
    return f"{str(method['config_class']).removesuffix('Config')} {settings}".strip()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


def _start(config: dict[str, Any], picked: Any, overrides: tuple[str, ...]) -> tuple[str, Run | None]:
    """What a run starts from: its name for the label, and the run itself for ROW@TASK.

    That run has this one's model, data folder and training overrides, its own recipe, and seed 0.
    """
    word = config["init_from"] = str(config["init_from"])
    row, at, task = word.partition("@")
    if not at or "/" in word:
        is_id = re.fullmatch(r"[0-9a-f]{12}", word)
        if not is_id and not word.endswith(".safetensors"):
            raise UserError(
                f"init_from={word}: should be a run id (12 hex digits), an adapter file or ROW@TASK such as"
                " lora@mnli"
            )
        return (f"run {word}" if is_id else Path(word).stem), None
    _check_choice("method", row)
    _check_choice("task", task)
    own = (
        "method",
        "task",
        "seed",
        "data_seed",
        "init_from",
        "recipe",
        "paper",
        "keep",
        "model",
        "task.holdout",
    )
    carried = [o for o in overrides if o.partition("=")[0] not in own and not o.startswith("method.")]
    words = (*carried, f"model={picked['model']}", f"method={row}", f"task={task}", "seed=0")
    cfg = _compose_with_recipe(words)
    recipe = str(cfg.hydra.runtime.choices.get("recipe")) if cfg.get("recipe") else "defaults"
    first = _make_run(cfg, cfg.hydra.runtime.choices, recipe, None, words)
    if first.start:
        raise UserError(f"init_from={word}: {row} starts from another run itself")
    return task, first


def _compose(overrides: tuple[str, ...]) -> DictConfig:
    """What Hydra composes. A choice of files is composed once; words KEY=VALUE are put into a copy, as Hydra
    puts them after its files. Composing takes a tenth of a second, and a sweep asks for the same files again
    and again."""
    files = tuple(o for o in overrides if o.partition("=")[0] in GROUPS)
    cfg = copy.deepcopy(_files(files, str(CONF), _written()))
    try:
        for override in map(
            OverridesParser.create().parse_override, (o for o in overrides if o not in files)
        ):
            if override.package or override.is_delete() or override.is_add() or override.is_sweep_override():
                return _hydra(overrides)
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except (HydraException, OmegaConfBaseException):
        return _hydra(overrides)  # which says what is wrong
    return cfg


@cache
def _files(choices: tuple[str, ...], conf: str, written: int) -> DictConfig:
    return _hydra(choices)


def _written() -> int:
    """When a file of conf/ was last written or came, in nanoseconds: a notebook may edit one between two
    calls."""
    return max(path.stat().st_mtime_ns for path in [CONF, *CONF.rglob("*")])


def _hydra(overrides: tuple[str, ...]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=True)
    except HydraException as error:
        raise UserError(_explain(error, overrides)) from None


def _explain(error: HydraException, overrides: tuple[str, ...]) -> str:
    """Hydra's several lines as one: which key is unknown, and which was meant."""
    known = known_keys(tuple(o for o in overrides if o.partition("=")[0] in GROUPS)) if overrides else []
    for line in overrides:
        key = line.lstrip("+~").partition("=")[0]
        if known and key not in known and key not in GROUPS:
            return f"no key {key!r}.{_did_you_mean(key, known)} (python -m runs --help lists them)"
    cause = error.__cause__ or error.__context__ or error
    for line in overrides:
        key = line.partition("=")[0]
        if f"full_key: {key}" in f"{error}\n{cause}":
            for words, wanted in (
                ("to Float", "a number"),
                ("to Integer", "a whole number"),
                ("valid bool", "true or false"),
            ):
                if words in str(cause):
                    return f"{line}: should be {wanted}"
            return f"{line}: {_first_line(cause)}"
    return _first_line(error)


@cache
def known_keys(groups: tuple[str, ...] = ()) -> list[str]:
    """Every key of the configuration with these group choices, dotted."""
    return [key for key, _ in _walk(OmegaConf.to_container(_own(_compose(groups))))]


def settings(groups: tuple[str, ...] = ()) -> list[str]:
    """Every key that has a value with these group choices, as KEY=VALUE."""
    found = dict(_walk(OmegaConf.to_container(_own(_compose(groups)), resolve=True)))
    parents = {key.rpartition(".")[0] for key in found}
    return [
        f"{key}={as_word(found[key])}"
        for key in found
        if key not in (*parents, *GROUPS, "task.name", "model.name")
    ]


def _own(cfg: DictConfig) -> DictConfig:
    """Without Hydra's part."""
    return OmegaConf.masked_copy(cfg, _OWN)


_OWN = [f.name for f in dataclasses.fields(Config)]


def _plain(node: Any) -> Any:
    """A part of the configuration as plain values, resolved: of the parts that are asked for alone, which is
    quicker."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what they hold, but for what no word sets: the recipe's, and parts of an
    architecture."""
    for key, value in node.items():
        if f"{prefix}{key}".startswith(("recipe", "model.architecture.")):
            continue
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")


def as_word(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_word(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_word, value)) + "]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _check_choice(group: str, value: str) -> None:
    known = choices(group)
    if value not in known:
        raise UserError(
            f"no {group} {value!r}.{_did_you_mean(value, known)} Known: {', '.join(known)} (python -m runs"
            " --help)"
        )


def _did_you_mean(word: str, known: list[str]) -> str:
    """The nearest right name, or, for a key of a group, what the group has."""
    # "lr" for "train.lr": the last part right, the group wrong or left out
    group, _, last = word.rpartition(".")
    close = [k for k in known if k.startswith(f"{word}_")][:4] or [
        k for k in known if k.endswith(f".{last}")
    ][:1]
    close = close or difflib.get_close_matches(word, known, 1, 0.75)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    members = [key.rpartition(".")[2] for key in known if group and key.rpartition(".")[0] == group]
    return f" {group} has: {', '.join(members)}" if members else ""


def _check_types(config: dict[str, Any], overrides: tuple[str, ...], recipe: str) -> list[str]:
    """Task and method files are their own schema: a value given for a key must be of the type of the file's
    own.

    A whole number for a key that has a fraction becomes one. Returns the words that set the method, the
    training or the model's configuration to something else than their files do."""
    given = [o for o in overrides if o.startswith(("task.", "method.", "train.", "model.settings"))]
    if not given:
        return []
    default = _defaults(tuple(o for o in overrides if o.partition("=")[0] in GROUPS), recipe)
    changed = []
    for line in given:
        key, node = line.partition("=")[0], config
        wanted = _plain(OmegaConf.select(default, key))
        for part in key.split("."):
            parent, node = node, node[part]
        if isinstance(wanted, float) and isinstance(node, int) and not isinstance(node, bool):
            parent[part] = node = float(node)  # `1` and `1.0` are one run
        elif (
            isinstance(wanted, list) and isinstance(node, list) and all(isinstance(x, float) for x in wanted)
        ):
            parent[part] = node = [float(x) if type(x) is int else x for x in node]
        if node != wanted and not line.startswith("task."):
            changed.append(line)
        if wanted is None or node is None or type(node) is type(wanted):
            continue
        names = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "a word",
            list: "a list [a,b]",
            dict: "a mapping {a:b}",
        }
        raise UserError(
            f"{line}: should be {names.get(type(wanted), type(wanted).__name__)}, such as {wanted}"
        )
    return changed


@cache
def _defaults(groups: tuple[str, ...], recipe: str) -> DictConfig:
    """What the files say. The recipe may be that of another row: its values are a run's own, too."""
    cfg = _compose(groups)
    if recipe not in ("defaults", cfg.hydra.runtime.choices.get("recipe")):
        cfg = _compose((*groups, f"recipe={recipe}"))
    return cfg


#: Keys of a task that hold a path or a name, or null: a number is no such word.
PLACES = ("data_dir", "hub", "revision", "train_file", "dev_file", "hub_config", "mt_bench_dir", "template")


def _check_values(config: dict[str, Any]) -> None:
    """What types alone do not catch."""
    train = config["train"]
    allowed = {
        "train.schedule": (train["schedule"], ("linear", "cosine", "constant")),
        "train.precision": (train["precision"], ("fp32", "bf16", "fp16")),
        "select": (config["select"], ("paper", "crossfit")),
        "keep": (config["keep"], ("best", "last", "both", "none")),
        "adapter_precision": (config["adapter_precision"], ("fp32", "bf16", "fp16")),
        "device": (config["device"], ("auto", "cpu", "cuda", "mps")),
        "model.quantise": (config["model"]["quantise"], (None, "nf4")),
    }
    for key, (value, words) in allowed.items():
        if value not in words:
            raise UserError(f"{key}={value}: should be one of {', '.join(word or 'null' for word in words)}")
    for key in ("epochs", "effective_batch", "max_length", "max_steps", "warmup_steps", "evaluate_every"):
        if train[key] is not None and train[key] < (key != "warmup_steps"):
            raise UserError(f"train.{key}={train[key]}: should be at least {int(key != 'warmup_steps')}")
    for key in ("lr", "lr_head", "weight_decay", "warmup_ratio", "adam_eps"):
        if not 0 <= train[key] < float("inf"):
            raise UserError(f"train.{key}={train[key]}: should be a number that is not negative")
    if train["warmup_ratio"] > 1:
        raise UserError(f"train.warmup_ratio={train['warmup_ratio']}: should be between 0 and 1")
    for key in ("micro_batch", "eval_batch"):
        if config[key] is not None and config[key] < 1:
            raise UserError(f"{key}={config[key]}: should be at least 1")
    if not (0 <= config["seed"] < 2**63 and 0 <= config["data_seed"] < 2**63):
        raise UserError("seed and data_seed should be in [0, 2^63)")
    model, task = config["model"], config["task"]
    if task["family"] not in tasks.families():
        raise UserError(f"task.family={task['family']}: should be one of {', '.join(tasks.families())}")
    for key in ("train_rows", "dev_rows", "items"):
        if task.get(key) is not None and (type(task[key]) is not int or task[key] < 1):
            raise UserError(
                f"task.{key}={task[key]}: should be a whole number of at least 1, or null for all"
            )
    # Null is no third value
    for part, key in ((task, "task.length_grouped"), (config["method"], "method.redrawn")):
        value = part.get(key.partition(".")[2], True)
        if not isinstance(value, bool):
            raise UserError(f"{key}={as_word(value)}: should be true or false")
    share = task["holdout"]
    if share is not None and (type(share) not in (int, float) or not 0 < share < 1):
        raise UserError(
            f"task.holdout={share}: should be a number between 0 and 1, such as 0.2, or null for none"
        )
    for key in PLACES:
        if not isinstance(task.get(key), str | None):
            value = as_word(task[key])
            raise UserError(f"task.{key}={value}: should be a word; of digits alone, ./{value} or quoted")
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
        mismatch = (
            f"model {model['name']} takes {model['modality']}, task {task['name']} is {task['modality']}"
        )
        fitting = [
            ", ".join(_of(group, part["modality"])) for group, part in (("model", task), ("task", model))
        ]
        raise UserError(
            f"{mismatch}. Models for {task['name']}: {fitting[0]}. Tasks for {model['name']}: {fitting[1]}"
        )
    if not (model["path"] or model["hub"] or model["package"] or model["wheel"]):
        raise UserError(
            f"model={model['name']} names no weights. Give model.path=/a/local/folder or model.hub=owner/name"
        )


def _check_where_from(config: dict[str, Any], cfg: DictConfig) -> None:
    """Settings of a method that follow from others (LoRA's alpha, VeRA's projection_seed). cfg: before it was
    resolved."""
    method = config["method"]
    if method["kind"] != "lora":
        method.pop("scaling", None)  # of a preset of LoRA's rows that another row was asked of (METHODS=vera)
    if "scaling" in method:
        if method["scaling"] not in SCALINGS:
            raise UserError(f"method.scaling={method['scaling']}: should be one of {', '.join(SCALINGS)}")
        old, rank = from_recipe(config, "alpha", 8), from_recipe(config, "rank", 8)
        wanted = _alpha(method["scaling"], old, rank, method["rank"])
        if method["scaling"] == "proportional" and method["alpha"] != wanted:
            asked = f"method.alpha={method['alpha']} with method.scaling=proportional"
            raise UserError(
                f"{asked}, which makes it {wanted} at rank {method['rank']}: leave one of the two out"
            )
    if "redrawn" in method:
        raw: Any = OmegaConf.to_container(cfg.method, resolve=False)
        asked, follows = (
            f"method.projection_seed={raw['projection_seed']}",
            "seed" in str(raw["projection_seed"]),
        )
        if method["redrawn"] and not (follows and method["projection_seed"] == config["seed"]):
            mend = "matrices that are drawn anew follow the seed, as with method=vera_redrawn alone"
            raise UserError(f"{asked} with method.redrawn=true: {mend}")
        if follows and not method["redrawn"]:
            raise UserError(
                f"{asked}: matrices that are drawn anew for every seed are a row of their own,"
                " method=vera_redrawn"
            )


def _of(group: str, modality: str) -> list[str]:
    """The models or tasks of a modality, which their files name, or those that they begin with."""

    def named(name: str) -> str:
        found: Any = OmegaConf.load(CONF / group / f"{name}.yaml")
        return str(found.get("modality") or named(found.defaults[0]))

    return [name for name in choices(group) if named(name) == modality]


def _parse(argument: str) -> Override:
    shown = argument if len(argument) <= 100 else f"{argument[:100]}..."
    try:
        override = OverridesParser.create().parse_override(argument)
    except (RecursionError, ValueError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else _first_line(error)
        raise UserError(f"{shown[:60]}: cannot be read ({why})") from None
    except HydraException:
        if argument.startswith("-"):
            raise UserError(f"no option {shown}; settings are words, such as output=FOLDER") from None
        raise UserError(
            f"{shown!r} is not KEY=VALUE (a list is KEY=a,b for a sweep, KEY=[a,b] for one value)"
        ) from None
    if override.is_add():
        raise UserError(f"no key {override.key_or_group!r}: keys are those of conf/, and + adds none")
    if override.key_or_group.startswith("recipe."):  # or the result would stand under the recipe's name
        key = override.key_or_group.removeprefix("recipe.")
        raise UserError(
            f"{shown}: a recipe is a file; set train.{key}, method.{key} or task.{key}, whichever there is"
        )
    if override.is_delete() or not override.key_or_group or not argument.partition("=")[1]:
        raise UserError(f"{shown!r} is not KEY=VALUE")
    if re.match(r"hydra\b", override.key_or_group):
        raise UserError(
            f"{shown}: of Hydra's own settings only hydra.launcher.KEY=VALUE is taken, by launcher=slurm"
            " and ray"
        )
    if "_target_" in override.key_or_group.split(".") or _names_target(override.value()):
        raise UserError(f"{shown}: _target_ names what is called, which no word does")
    return override


def _names_target(value: Any) -> bool:
    """Whether a value holds a mapping with the key by which Hydra calls whatever it names."""
    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, dict):
        return any(getattr(key, "text", key) == "_target_" for key in value) or any(
            map(_names_target, value.values())
        )
    return isinstance(value, list) and any(map(_names_target, value))


def _key(override: Override) -> str:
    return override.key_or_group


def _values(override: Override) -> list[str]:
    """What a word lists. UserError for more than MOST_RUNS values, before they are made, and for what is no
    list."""
    line, value = override.input_line or "", override.value()
    nested = isinstance(value, ChoiceSweep) and any(isinstance(one, Sweep) for one in value.list)
    if nested or not isinstance(value, ChoiceSweep | RangeSweep):
        raise UserError(
            f"{line}: should be KEY=a,b or KEY=range(first,end) for a sweep, KEY=[a,b] for one value"
        )
    try:
        if (
            isinstance(value, RangeSweep)
            and len(list(itertools.islice(value.range(), MOST_RUNS + 1))) > MOST_RUNS
        ):
            raise UserError(f"{line}: more values than the {MOST_RUNS:,} runs that one command takes")
        return [str(word) for word in override.sweep_string_iterator()]
    except (HydraException, ValueError, ArithmeticError) as error:
        raise UserError(f"{line}: no range ({_first_line(error)})") from None


def _word(line: str) -> str:
    return line.partition("=")[2]


def _seed(line: str) -> int:
    word = _word(line)
    if not word.isdecimal():
        raise UserError(f"seed={word}: should be a whole number")
    return int(word)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
