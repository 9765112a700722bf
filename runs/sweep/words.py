"""Reads where and how from a command's words, until a configuration group `launcher` does."""

from dataclasses import fields, make_dataclass
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runs.errors import UserError
from runs.sweep.settings import LAUNCHERS, Launch, Serial


def take(words: list[str]) -> tuple[Launch, list[str]]:
    """Where and how, and the other words of a command: launcher=NAME, a key of Launch, executors=,
    runs_per_device=, and hydra.launcher.KEY=. Raises UserError for what is wrong."""
    prefixes = ("hydra.launcher.", "+hydra.launcher.", "++hydra.launcher.")
    shared = make_dataclass("Shared", [(f.name, f.type, f) for f in fields(Launch)[1:]])
    common = [f.name for f in fields(shared)]
    name, plain, of_launcher, rest = "serial", dict[str, str | None](), dict[str, str](), list[str]()
    for word in words:
        key, _, value = word.partition("=")
        if key == "launcher":
            name = value
        elif key in common:
            plain[key] = None if value == "null" else value
        elif key in ("executors", "runs_per_device"):
            of_launcher[word] = word
        elif word.startswith(prefixes):
            of_launcher[word] = word.partition("hydra.launcher.")[2].removeprefix("ray.")
        else:
            rest.append(word)
    if name not in LAUNCHERS:
        raise UserError(f"launcher={name}: should be one of {', '.join(LAUNCHERS)}")
    for word, own in of_launcher.items():
        key = own.partition("=")[0].partition(".")[0]
        have = [known for known, kind in LAUNCHERS.items() if key in {f.name for f in fields(kind)}]
        if name not in have:
            which = f"is for launcher={' and launcher='.join(have)}" if have else "is no key of a launcher"
            raise UserError(f"{word} {which}")
    try:
        launcher = OmegaConf.merge(LAUNCHERS[name], OmegaConf.from_dotlist(list(of_launcher.values())))
        others = cast(DictConfig, OmegaConf.merge(shared, plain))
        launch = Launch(
            cast(Serial, OmegaConf.to_object(launcher)), **{str(key): others[key] for key in common}
        )
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(str(error).splitlines()[0]) from None
    launch.check()
    return launch, rest
