"""What the options print that run nothing: --cfg, --help, --info and Hydra's own."""

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
    ERRORS,
    VERSION_BASE,
    Composer,
    choices_of,
    dotted,
    name_of_row,
    without_hydra,
)
from runs.config.expand import read_command
from runs.config.files import GROUPS, LISTED, RECIPE_READ, Files, comments_in
from runs.config.grid import Grid, read_grid
from runs.config.schema import BASE
from runs.record.ledger import CONF
from runs.record.override import Override, as_override_value
from runs.record.text import first_line

#: The shells that Hydra completes for.
SHELLS = ("bash", "zsh", "fish")


def show_completion(words: tuple[str, ...]) -> None:
    """Prints what a shell asks of --shell-completion: install=bash, or what may follow.
    Raises UserError for a shell that Hydra does not know."""
    word = words[0] if words else ""
    if Override(word).value not in SHELLS:
        shells = ", ".join(SHELLS)
        raise UserError(f"-sc {word}: should be install=SHELL, of {shells}")
    by_hydra(["-sc", word])


def by_hydra(options: list[str]) -> None:
    """Has Hydra's own main() print what an option asks for."""

    def run_nothing(cfg: DictConfig) -> None:
        """Every option here prints, and runs nothing."""

    GlobalHydra.instance().clear()
    program = sys.argv
    sys.argv = [program[0], *options]
    try:
        hydra.main(config_path=str(CONF), config_name="config", **VERSION_BASE)(
            run_nothing
        )()
    finally:
        sys.argv = program
        GlobalHydra.instance().clear()


def show_configuration(
    overrides: tuple[str, ...],
    options: Mapping[str, Any],
    files: Files,
    config_dir: str | None,
    sources: bool,
) -> None:
    """Prints the configuration of a command's first run, or where its values come from.
    Raises UserError for a mistake."""
    package = options.get("--package")
    with Composer(files) as composer:
        grid = read_grid(overrides, composer)
        _note_on_others(grid)
    # what a run would refuse is refused here, too
    read_command(grid.first, config_dir)
    with Composer(files) as composer:
        cfg = composer.compose(grid.first)
        try:
            content = _content(cfg, options, composer)
        except ERRORS as error:
            raise UserError(f"--cfg: {first_line(error)}") from None
        if sources:
            _show_sources(cfg, overrides, grid, package, composer)
            return
    if package is not None:
        print(f"# @package {package}")
    _print_yaml(content)


def show_help(text: str, overrides: tuple[str, ...], files: Files) -> None:
    """Prints the help, or the keys of the choices that are named."""
    if overrides:
        _explain_keys(overrides, files)
        return
    print(text)
    print("Groups (GROUP=NAME):")
    for group in GROUPS:
        names = files.choices(group)
        if group in LISTED:
            place = f"vera-bench list {group}s shows all {len(names)}"
        elif len(names) < 9:
            place = ", ".join(names)
        else:
            place = f"{len(names)} files in conf/{group}"
        print(f"  {group:<12}{place}")
    print("\nThe keys of a choice: vera-bench --help task=NAME. All keys: docs/keys.md")


def _explain_keys(overrides: tuple[str, ...], files: Files) -> None:
    """Prints the sections of the configuration that the overrides name: every key with
    its value, and with what its file says about it."""
    with Composer(files) as composer:
        grid = read_grid(overrides, composer)
        cfg = composer.compose(grid.first)
        values = dict(dotted(without_hydra(cfg, resolve=True)))
        comments = dict[str, str]()
        for prefix, path in _config_files(cfg, grid.first, composer):
            for key, comment in comments_in(path).items():
                comments[f"{prefix}{key}"] = comment
    named = [Override(text).key for text in overrides]
    sections = dict.fromkeys(key.split(".")[0] for key in named)
    for key, value in values.items():
        if key.split(".")[0] in sections and not isinstance(value, Mapping):
            print(f"{key}={as_override_value(value)}")
            if key in comments:
                print(textwrap.indent(textwrap.fill(comments[key], 84), "    "))
    other_keys = [
        name for name in without_hydra(cfg, resolve=False) if name not in sections
    ]
    print(
        "\nOther keys, which --help explains likewise (--help train.lr=1 all of train's):"
    )
    print(textwrap.fill(", ".join(map(str, other_keys)), 88))


def show_info(kind: str, overrides: tuple[str, ...], files: Files) -> None:
    """Prints what Hydra does for the first run of a command."""
    with Composer(files) as composer:
        grid = read_grid(overrides, composer)
        composer.compose(grid.first)
        words = composer.for_hydra(grid.first)
    _note_on_others(grid)
    by_hydra(["--info", kind, *words])


def _note_on_others(grid: Grid) -> None:
    count = len(grid.cells) * max(len(grid.seeds), 1)
    if count > 1 and process_rank() == 0:
        print(f"note: of {count} runs the first one", file=sys.stderr)


def _content(
    cfg: DictConfig, options: Mapping[str, Any], composer: Composer
) -> dict[str, Any] | list[Any] | Any:
    """The part of the configuration that --cfg and --package name. Raises UserError
    where there is none of that name."""
    resolve = "--resolve" in options
    HydraConfig.instance().set_config(cfg)
    package = options.get("--package", "_global_")
    if package != "_global_":
        part = OmegaConf.select(cfg, package, default=composer)
        if part is composer:
            raise composer.no_key(package, ())
        is_config = OmegaConf.is_config(part)
        return OmegaConf.to_container(part, resolve=resolve) if is_config else part
    content = dict[str, Any]()
    parts = options.get("--cfg", "job")
    if parts != "job":
        if resolve:
            OmegaConf.set_readonly(cfg.hydra, False)
            # which only the jobs of Hydra's main() have
            cfg.hydra.job.num, cfg.hydra.job.id = 0, "0"
            OmegaConf.resolve(cfg.hydra)
        content["hydra"] = OmegaConf.to_container(cfg.hydra)
    if parts != "hydra":
        content |= without_hydra(cfg, resolve)
    return content


def _print_yaml(content: Any) -> None:
    is_part = isinstance(content, dict | list)
    print(OmegaConf.to_yaml(OmegaConf.create(content)) if is_part else content, end="")
    print(end="" if is_part else "\n")


# --- where each value comes from


def _show_sources(
    cfg: DictConfig,
    typed: tuple[str, ...],
    grid: Grid,
    package: str | None,
    composer: Composer,
) -> None:
    sources = list[tuple[str, str]]()
    for word, place in sources_of(cfg, typed, grid.first, composer):
        if not package or word.startswith((f"{package}.", f"{package}=")):
            sources.append((word, place))
    width = max((len(word) for word, _ in sources), default=0)
    for word, place in sources:
        print(f"{word:<{width}}  {place}")


def sources_of(
    cfg: DictConfig,
    typed: tuple[str, ...],
    overrides: tuple[str, ...],
    composer: Composer,
) -> Iterator[tuple[str, str]]:
    """Each value as KEY=VALUE, and where it comes from: the command line, a file, or a
    place in a recipe."""
    places = _places(cfg, typed, overrides, composer)
    values = dict(dotted(without_hydra(cfg, resolve=True)))
    for key, raw in dotted(without_hydra(cfg, resolve=False)):
        if isinstance(raw, dict) or key.startswith("recipe."):
            continue
        in_recipe = _place_in_recipe(cfg, str(raw), places)
        if in_recipe:
            place = f"{places[f'recipe.{in_recipe}']}: {in_recipe}"
        else:
            place = str(places.get(key))
            if "${" in str(raw):
                place += f": {raw}"
        yield f"{key}={as_override_value(values[key])}", place


def _places(
    cfg: DictConfig,
    typed: tuple[str, ...],
    overrides: tuple[str, ...],
    composer: Composer,
) -> dict[str, str]:
    """The file that each key is in, or the command line."""
    choices = choices_of(cfg)
    places = {key: "runs/config/schema.py" for key, _ in dotted(BASE)}
    for prefix, path in _config_files(cfg, overrides, composer):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        content.pop("defaults", None)
        for key, _ in dotted(content):  # a later file wins
            places[f"{prefix}{key}"] = str(path).replace(f"{CONF}/", "conf/")
    typed_keys = {Override(text).key for text in typed}
    preset = f"conf/experiment/{choices.get('experiment')}.yaml"
    for text in overrides:
        key = Override(text).key
        places[key] = "the command line" if key in typed_keys else preset
    return places


def _config_files(
    cfg: DictConfig, overrides: tuple[str, ...], composer: Composer
) -> Iterator[tuple[str, Path]]:
    """The files of a configuration in the order in which Hydra merges them, each with
    the prefix of its keys."""
    loader = GlobalHydra.instance().config_loader()
    words = [word for word in overrides if not word.startswith("recipe=")]
    if cfg.get("recipe"):
        words.append(f"recipe={choices_of(cfg)['recipe']}")
    for default in loader.compute_defaults_list("config", words, RunMode.RUN).defaults:
        path = _path_of(str(default.config_path), composer.files)
        package = default.package or ""
        if path is not None:
            yield "" if package in ("", "_global_") else f"{package}.", path


def _path_of(name: str, files: Files) -> Path | None:
    """The file that Hydra calls task/rte, or config; None for one of Hydra's own."""
    paths = (folder / f"{name}.yaml" for folder in files.folders)
    return next((path for path in paths if path.is_file()), None)


def _place_in_recipe(cfg: DictConfig, raw: str, places: dict[str, str]) -> str:
    """Where in the recipe a value stands that is read from it, such as by_task.lr.rte;
    "" for others."""
    if not (read := RECIPE_READ.search(raw)):
        return ""
    key = read[1]
    parts = [f"by_task.{key}.{cfg.task.name}", key]
    row = name_of_row(cfg)
    for part in [*(f"by_row.{row}.{part}" for part in parts), *parts]:
        if f"recipe.{part}" in places:
            return part
    return ""
