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
        Whether this completes the line. If not, Hydra completes it too, and reads it
        from the environment variable COMP_LINE.
    """
    complete_words = line.split()[1:]
    begun_word = ""
    if complete_words and not line.endswith(" "):
        begun_word = complete_words.pop()
    if not complete_words:
        _print_words_with(begun_word, [*COMMANDS])
        return False
    name, *arguments = complete_words
    if name not in COMMANDS:
        return False
    if name in COMPLETED_BY_HYDRA:
        os.environ["COMP_LINE"] = " ".join(["vera-bench", *arguments, begun_word])
        return False
    _print_words_with(begun_word, _words_after_command(name))
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
