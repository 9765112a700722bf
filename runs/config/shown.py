"""What options print in place of a run: --cfg, --help, --info and those of Hydra."""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs.command.errors import UserError, process_rank
from runs.config.compose import (
    HYDRA_ERRORS,
    VERSION_BASE,
    Composer,
    dotted_items,
    group_choices,
    name_of_row,
    without_hydra,
)
from runs.config.expand import read_command
from runs.config.files import (
    GROUPS,
    LISTED_GROUPS,
    RECIPE_REFERENCE,
    Files,
    comments_in,
)
from runs.config.grid import Grid, read_grid
from runs.config.schema import BASE
from runs.record.ledger import CONF
from runs.record.override import Override, as_override_value
from runs.record.text import first_line

#: The shells that Hydra completes for.
SHELLS = ("bash", "zsh", "fish")


def show_completion(words: tuple[str, ...]) -> None:
    """Prints what a shell asks of --shell-completion: install=bash for the lines that set
    it up, query=bash for the words that may follow. Raises UserError for a shell that
    Hydra does not know."""
    word = words[0] if words else ""
    if Override(word).value not in SHELLS:
        shells = ", ".join(SHELLS)
        raise UserError(f"-sc {word}: should be install=SHELL, of {shells}")
    print_by_hydra(["-sc", word])


def print_by_hydra(options: list[str]) -> None:
    """Has Hydra's own main() print what these options ask for."""

    def run_nothing(cfg: DictConfig) -> None:
        """Every option here prints, and runs nothing."""

    # main() refuses to start beside a Hydra that is there, and reads sys.argv
    GlobalHydra.instance().clear()
    arguments = sys.argv
    sys.argv = [arguments[0], *options]
    try:
        hydra.main(config_path=str(CONF), config_name="config", **VERSION_BASE)(
            run_nothing
        )()
    finally:
        sys.argv = arguments
        GlobalHydra.instance().clear()


def show_configuration(
    overrides: tuple[str, ...],
    options: Mapping[str, Any],
    files: Files,
    config_dir: str | None,
    sources: bool,
) -> None:
    """Prints the configuration of a command's first run. Raises UserError for a mistake.

    Args:
        overrides: As they were typed.
        options: The options by their long names. --package names a part, --cfg whether
            the job, Hydra's part or all is shown, and --resolve fills in ${...}.
        files: The files of the configuration.
        config_dir: The folder of --config-dir.
        sources: Prints where each value comes from instead.
    """
    package = options.get("--package")
    with Composer(files) as composer:
        grid = read_grid(overrides, composer)
        _note_if_several(grid)
    # what a run would refuse is refused here, too
    read_command(grid.first, config_dir)
    with Composer(files) as composer:
        cfg = composer.compose(grid.first)
        try:
            # with sources, too: an unknown --package is an error
            content = _selected_content(cfg, options, composer)
        except HYDRA_ERRORS as error:
            raise UserError(f"--cfg: {first_line(error)}") from None
        if sources:
            _show_sources(cfg, overrides, grid, package, composer)
            return
    if package is not None:
        print(f"# @package {package}")
    _print_yaml(content)


def show_help(text: str, overrides: tuple[str, ...], files: Files) -> None:
    """Prints the help; or, for overrides such as task=mrpc, the keys of those choices.
    text: the help of the settings and options."""
    if overrides:
        _explain_keys(overrides, files)
        return
    print(text)
    print("Groups (GROUP=NAME):")
    for group in GROUPS:
        names = files.choices(group)
        if group in LISTED_GROUPS:
            description = f"vera-bench list {group}s shows all {len(names)}"
        elif len(names) < 9:
            description = ", ".join(names)
        else:
            description = f"{len(names)} files in conf/{group}"
        print(f"  {group:<12}{description}")
    print("\nThe keys of a choice: vera-bench --help task=NAME. All keys: docs/keys.md")


def _explain_keys(overrides: tuple[str, ...], files: Files) -> None:
    """Prints the sections of the configuration that the overrides name (for train.lr=1
    that is train): every key with its value, and with what its file says about it. The
    values are those of the first run."""
    with Composer(files) as composer:
        grid = read_grid(overrides, composer)
        cfg = composer.compose(grid.first)
        values = dict(dotted_items(without_hydra(cfg, resolve=True)))
        comments = dict[str, str]()
        for prefix, path in _config_files(cfg, grid.first, composer):
            for key, comment in comments_in(path).items():
                comments[f"{prefix}{key}"] = comment
    sections = {Override(text).group for text in overrides}
    for key, value in values.items():
        if key.split(".")[0] in sections and not isinstance(value, Mapping):
            print(f"{key}={as_override_value(value)}")
            if key in comments:
                print(textwrap.indent(textwrap.fill(comments[key], 84), "    "))
    other_sections = []
    for name in without_hydra(cfg, resolve=False):
        if name not in sections:
            other_sections.append(name)
    print(
        "\nOther keys, which --help explains likewise (--help train.lr=1 all of train's):"
    )
    print(textwrap.fill(", ".join(other_sections), 88))


def show_info(kind: str, overrides: tuple[str, ...], files: Files) -> None:
    """Prints what Hydra does for the first run of a command. kind: of information, as
    Hydra's --info takes it."""
    with Composer(files) as composer:
        grid = read_grid(overrides, composer)
        composer.compose(grid.first)
        words = composer.overrides_for_hydra(grid.first)
    _note_if_several(grid)
    print_by_hydra(["--info", kind, *words])


def _note_if_several(grid: Grid) -> None:
    """Notes on stderr that only the first of several runs is shown."""
    count = len(grid.cells) * max(len(grid.seeds), 1)
    if count > 1 and process_rank() == 0:
        print(f"note: this is the first of {count} runs", file=sys.stderr)


def _selected_content(
    cfg: DictConfig, options: Mapping[str, Any], composer: Composer
) -> Any:
    """The part of the configuration that --cfg and --package name, as plain values.
    Raises UserError where there is none of that name."""
    resolve = "--resolve" in options
    HydraConfig.instance().set_config(cfg)  # what ${hydra:...} reads
    package = options.get("--package", "_global_")
    if package != "_global_":
        missing = object()
        part = OmegaConf.select(cfg, package, default=missing)
        if part is missing:
            raise composer.unknown_key_error(package, ())
        if OmegaConf.is_config(part):
            return OmegaConf.to_container(part, resolve=resolve)
        return part
    content = dict[str, Any]()
    selection = options.get("--cfg", "job")
    if selection != "job":
        if resolve:
            OmegaConf.set_readonly(cfg.hydra, False)
            # only the jobs of Hydra's main() have these two
            cfg.hydra.job.num = 0
            cfg.hydra.job.id = "0"
            OmegaConf.resolve(cfg.hydra)
        content["hydra"] = OmegaConf.to_container(cfg.hydra)
    if selection != "hydra":
        content |= without_hydra(cfg, resolve)
    return content


def _print_yaml(content: Any) -> None:
    """Prints a mapping or list as YAML, and a single value as it is."""
    if isinstance(content, dict | list):
        print(OmegaConf.to_yaml(OmegaConf.create(content)), end="")
    else:
        print(content)


# --- where each value comes from


def _show_sources(
    cfg: DictConfig,
    typed: tuple[str, ...],
    grid: Grid,
    package: str | None,
    composer: Composer,
) -> None:
    """Prints each KEY=VALUE of the configuration, or of its part `package`, and where
    the value comes from. typed: the overrides of the command line."""
    lines = list[tuple[str, str]]()
    for assignment, source in values_with_sources(cfg, typed, grid.first, composer):
        if not package or assignment.startswith((f"{package}.", f"{package}=")):
            lines.append((assignment, source))
    width = max((len(assignment) for assignment, _ in lines), default=0)
    for assignment, source in lines:
        print(f"{assignment:<{width}}  {source}")


def values_with_sources(
    cfg: DictConfig,
    typed: tuple[str, ...],
    overrides: tuple[str, ...],
    composer: Composer,
) -> Iterator[tuple[str, str]]:
    """Each value as KEY=VALUE, and where it comes from: "the command line", a file, or a
    file and a key of the recipe in it.

    Args:
        cfg: The configuration of a run.
        typed: The overrides of the command line.
        overrides: Those of the run: the typed ones, and values from the lists of a
            preset.
        composer: What composed the configuration.
    """
    source_by_key = _source_by_key(cfg, typed, overrides, composer)
    values = dict(dotted_items(without_hydra(cfg, resolve=True)))
    for key, unresolved in dotted_items(without_hydra(cfg, resolve=False)):
        # each value of a mapping has a key of its own, and what the run takes from its
        # recipe stands under the run's keys
        if isinstance(unresolved, dict) or key.startswith("recipe."):
            continue
        recipe_key = _key_in_recipe(cfg, str(unresolved), source_by_key)
        if recipe_key:
            source = f"{source_by_key[f'recipe.{recipe_key}']}: {recipe_key}"
        else:
            source = str(source_by_key.get(key))
            if "${" in str(unresolved):
                source += f": {unresolved}"
        yield f"{key}={as_override_value(values[key])}", source


def _source_by_key(
    cfg: DictConfig,
    typed: tuple[str, ...],
    overrides: tuple[str, ...],
    composer: Composer,
) -> dict[str, str]:
    """The file that has a key's value, or "the command line", by key. The arguments are
    those of `values_with_sources`."""
    choices = group_choices(cfg)
    # a key that no file sets has the value of BASE, which is in that module
    sources = {key: "runs/config/schema.py" for key, _ in dotted_items(BASE)}
    for prefix, path in _config_files(cfg, overrides, composer):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        content.pop("defaults", None)
        for key, _ in dotted_items(content):  # a later file wins
            sources[f"{prefix}{key}"] = str(path).replace(f"{CONF}/", "conf/")
    typed_keys = {Override(text).key for text in typed}
    preset = f"conf/experiment/{choices.get('experiment')}.yaml"
    for text in overrides:
        key = Override(text).key
        sources[key] = "the command line" if key in typed_keys else preset
    return sources


def _config_files(
    cfg: DictConfig, overrides: tuple[str, ...], composer: Composer
) -> Iterator[tuple[str, Path]]:
    """The files of a configuration in the order in which Hydra merges them, each after
    the prefix of its keys in the configuration: "task.", or "" for the whole."""
    loader = GlobalHydra.instance().config_loader()
    # the recipe that was composed, which may be one of another row
    words = [word for word in overrides if not word.startswith("recipe=")]
    if cfg.get("recipe"):
        words.append(f"recipe={group_choices(cfg)['recipe']}")
    defaults_list = loader.compute_defaults_list("config", words, RunMode.RUN)
    for default in defaults_list.defaults:
        path = _path_of_config(str(default.config_path), composer.files)
        if path is None:
            continue
        package = default.package or "_global_"
        prefix = "" if package == "_global_" else f"{package}."
        yield prefix, path


def _path_of_config(name: str, files: Files) -> Path | None:
    """The file of what Hydra names task/rte, or config; None for a file of Hydra's own."""
    for folder in files.folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    return None


def _key_in_recipe(
    cfg: DictConfig, unresolved: str, source_by_key: dict[str, str]
) -> str:
    """The key of the recipe that a value is read from, such as by_task.lr.rte; "" for a
    value that is not read from the recipe, or is its default.

    Args:
        cfg: The configuration.
        unresolved: The value with its ${...}.
        source_by_key: Has the keys of the recipe's file, as recipe.KEY.
    """
    reference = RECIPE_REFERENCE.search(unresolved)
    if reference is None:
        return ""
    name = reference[1]
    shared_keys = [f"by_task.{name}.{cfg.task.name}", name]
    row = name_of_row(cfg)
    row_keys = [f"by_row.{row}.{key}" for key in shared_keys]
    for key in [*row_keys, *shared_keys]:
        if f"recipe.{key}" in source_by_key:
            return key
    return ""
