"""What a shell may complete a line with. Hydra completes the overrides of runs; this is
for the names of commands and for their own settings."""

import dataclasses
import importlib
import os

from vera_bench import COMMANDS

#: The commands that Hydra completes: their words are overrides.
COMPLETED_BY_HYDRA = ("run", "plan", "tune")


def complete(line: str) -> bool:
    """Prints what may follow in a command line. Returns False where Hydra has to complete
    it, too: it reads the line from COMP_LINE."""
    words = line.split()[1:]
    current = "" if line.endswith(" ") or not words else words.pop()
    if not words:
        _print_words_with(current, [*COMMANDS])
        return False
    name, *before = words
    if name not in COMMANDS:
        return False
    if name in COMPLETED_BY_HYDRA:
        os.environ["COMP_LINE"] = " ".join(["vera-bench", *before, current])
        return False
    _print_words_with(current, _words_of(name))
    return True


def _words_of(name: str) -> list[str]:
    """The settings of a command, and what its first word may be."""
    if name == "list":
        from vera_bench.names import KINDS

        return [*KINDS]
    if name == "serve":
        return []
    from runs.command.parser import Common

    module = importlib.import_module(COMMANDS[name].module)
    settings = getattr(module, "Settings", Common)
    return [
        f"{field.metadata['key'] or field.name}="
        for field in dataclasses.fields(settings)
    ]


def _print_words_with(beginning: str, words: list[str]) -> None:
    print(*(word for word in words if word.startswith(beginning)))
