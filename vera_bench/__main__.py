"""vera-bench COMMAND ...: imports the module of the command, and no other."""

import importlib
import itertools
import os
import sys
import textwrap

from runs.command.errors import UserError
from vera_bench import COMMANDS

FIRST_LINES = """\
vera-bench trains and compares parameter-efficient adapters.

  vera-bench experiment=demo              train five methods on real data
  vera-bench model=roberta_base task=rte method=vera,lora seed=0,1,2
  vera-bench plan experiment=table2_base  what would run, and for how long
  vera-bench table table2                 your results next to the paper's
  vera-bench predict RUN new.csv          what a trained run says about new rows
"""
LAST_LINES = """\
Help: vera-bench COMMAND --help, vera-bench --help task=mrpc.
Docs: docs/quickstart.md"""


def overview() -> str:
    """What vera-bench prints when it is called without a command."""
    names = textwrap.fill(
        f"Commands: {' '.join(COMMANDS)}",
        width=80,
        subsequent_indent=" " * len("Commands: "),
        break_on_hyphens=False,
    )
    return f"{FIRST_LINES}\n{names}\n{LAST_LINES}"


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The name of the command in the words of a command line, and the words that are meant
    for it. Words that begin with KEY=VALUE or an option are a command line of `run`.
    Raises UserError for an unknown name, and for one that does not come first."""
    first = words[0] if words else ""
    if first in COMMANDS:
        return first, words[1:]
    if "=" in first or first.startswith(("-", "~")):
        _refuse_later_command(words)
        return "run", words
    # imported late, since it imports pydantic
    from runs.command.advice import did_you_mean

    advice = did_you_mean(first, COMMANDS) or f" Commands: {', '.join(COMMANDS)}"
    raise UserError(f"no command {first!r}.{advice} (vera-bench)")


def _refuse_later_command(words: list[str]) -> None:
    """Raises UserError where a command's name comes late, as in `task=rte plan`. words:
    of a line that begins with an override or an option."""
    for previous, word in itertools.pairwise(words):
        # a name after an option is its value, such as a folder
        if word in COMMANDS and not previous.startswith("-"):
            raise UserError(f"the command comes first: vera-bench {word} ...")


def main(words: list[str]) -> int:
    """Runs a command; returns its exit code."""
    # Hydra's option, by which a shell asks for what may follow the words in COMP_LINE
    if words[:1] in (["-sc"], ["--shell-completion"]) and "COMP_LINE" in os.environ:
        from vera_bench.completion import complete

        if complete(os.environ["COMP_LINE"]):
            return 0
        # otherwise `run` passes -sc on to Hydra, which prints what may follow
    name, arguments = split_command(words)
    # the usage lines and messages of the command name it as it was typed
    program = "vera-bench" if words == arguments else f"vera-bench {name}"
    sys.argv = [program, *arguments]
    module = importlib.import_module(COMMANDS[name].module)
    return int(module.main(arguments) or 0)


def script() -> None:
    """The installed script vera-bench."""
    words = sys.argv[1:]
    if not words:
        print(overview())
        return
    if "=" in words[0] or words[0] == "run":
        from runs.machine.processes import start_early

        # the fork server starts while this process imports the command's modules
        overrides = words[1:] if words[0] == "run" else words
        start_early(overrides)
    from runs.command.parser import entry_point

    entry_point(main)


if __name__ == "__main__":
    script()
