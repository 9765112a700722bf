"""What a shell offers when you press Tab: the names of commands, and the settings of each.
Hydra completes the overrides of runs."""

import dataclasses
import importlib
import os

from vera_bench import COMMANDS

#: The commands that Hydra completes: their words are overrides.
COMPLETED_BY_HYDRA = ("run", "plan", "tune")


def complete(line: str) -> bool:
    """Prints what may follow in a command line.

    Returns:
        Whether everything that may follow is printed. If not, Hydra has to print what
        it knows. It reads the line from the environment variable COMP_LINE, from which
        this function removes `run`, `plan` or `tune`, since Hydra knows no commands.
    """
    words_before = line.split()[1:]
    typed_part = ""  # of the word at the cursor
    if words_before and not line.endswith(" "):
        typed_part = words_before.pop()
    if not words_before:
        _print_words_with(typed_part, [*COMMANDS])
        return False  # the first word may also be an override, which Hydra completes
    name, *arguments = words_before
    if name not in COMMANDS:
        return False
    if name in COMPLETED_BY_HYDRA:
        os.environ["COMP_LINE"] = " ".join(["vera-bench", *arguments, typed_part])
        return False
    _print_words_with(typed_part, _words_after_command(name))
    return True


def _words_after_command(name: str) -> list[str]:
    """The settings of a command, as KEY=; of `list`, the kinds of names."""
    if name == "list":
        from vera_bench.names import GROUP_BY_KIND

        return [*GROUP_BY_KIND]
    if name == "serve":
        return []
    from runs.command.parser import CommonSettings, key_of_field

    module = importlib.import_module(COMMANDS[name].module)
    settings = getattr(module, "Settings", CommonSettings)
    return [f"{key_of_field(field)}=" for field in dataclasses.fields(settings)]


def _print_words_with(beginning: str, words: list[str]) -> None:
    print(*(word for word in words if word.startswith(beginning)))
