"""The command line of every command of runs and analysis, and how a command ends.

A command's settings are KEY=VALUE words, as in Hydra: the fields of a dataclass,
converted by pydantic. Options with a dash are argparse's.

    @dataclass(frozen=True)
    class Settings(RecordSettings):
        format: Literal["md", "latex", "csv"] = setting("md", "how the table is printed")

    line = read_command_line(arguments, Settings, positional="TABLE")

`vera-bench COMMAND --help` shows the settings, and the docstring of the dataclass's
module. Each example in that docstring is a line that begins with `vera-bench`; what it
does follows on the same line, or indented below it.
"""

import functools
import gc
import inspect
import os
import re
import select
import shutil
import sys
import textwrap
import warnings
from argparse import (
    SUPPRESS,
    ArgumentError,
    ArgumentParser,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from runs.command.advice import describe_mistake, did_you_mean
from runs.command.errors import (
    UserError,
    interruption_message,
    is_user_error,
    process_rank,
)
from runs.record.override import as_override_value
from runs.record.text import describe, error_line

#: Options by their names, as argparse's add_argument takes them.
Options = Mapping[tuple[str, ...], Mapping[str, Any]]
HELP_OPTION: Options = {("-h", "--help"): {"action": "help", "help": "this text"}}
#: What --help says that a setting takes, by its type.
VALUE_KINDS = {
    bool: "true|false",
    int: "number",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
}
#: The beginning of an example in the docstring of a command.
EXAMPLE_START = re.compile(r"^(vera-bench|python -m) ", re.MULTILINE)
#: How an override may begin: KEY=, or ~ for a key to be removed.
OVERRIDE_START = re.compile(r"(?!-).*=|~")
#: How a word begins that is meant as an option or as KEY=VALUE.
OPTION_OR_SETTING_START = re.compile(r"-.|[+~]*[\w.@]+=")
CONFIG_DIR_FLAGS = ("-cd", "--config-dir")
#: Options of the commands that compose runs, as Hydra has them.
COMPOSING_OPTIONS: Options = {
    CONFIG_DIR_FLAGS: {
        "metavar": "FOLDER",
        "help": "a folder like conf/, of your own",
    },
    ("-m", "--multirun"): {
        "action": "store_true",
        "help": "not needed: a list makes a sweep",
    },
}


def setting(default: Any, description: str, key: str = "") -> Any:
    """A field of settings. description: its line in --help. key: what is typed for it,
    where that is not the field's name (task.bench)."""
    return field(default=default, metadata={"description": description, "key": key})


def key_of_field(item: Field[Any]) -> str:
    """What is typed on the command line for a field of settings."""
    return item.metadata["key"] or item.name


@dataclass(frozen=True)
class CommonSettings:
    """The settings of every command."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)
    debug: bool = setting(False, "an error keeps its traceback")


@dataclass(frozen=True)
class RecordSettings(CommonSettings):
    """The settings of every command that reads records."""

    output: str = setting("outputs", "the folder of records/ and of what is written")


S = TypeVar("S", covariant=True)  # the settings of a command


@dataclass(frozen=True)
class CommandLine(Generic[S]):
    """A command line, parsed.

    Attributes:
        positional: The words that are no settings, overrides or options, in order.
        settings: All settings of the command.
        given: The values of the settings that were typed, by key.
        overrides: The KEY=VALUE words that compose runs.
        options: The values of the options that were typed, by their long names.
        help: The text of --help.
    """

    positional: tuple[str, ...]
    settings: S
    given: dict[str, Any]
    overrides: tuple[str, ...]
    options: Mapping[str, Any]
    help: str

    @property
    def config_dir(self) -> str | None:
        """The folder of --config-dir."""
        return self.options.get("--config-dir")


def read_command_line(
    arguments: Sequence[str],
    settings: type[S],
    positional: str = "",
    overrides_help: str = "",
    options: Options = HELP_OPTION,
    module: str = "",
) -> CommandLine[S]:
    """Parses the command line of a command.

    Args:
        arguments: The words of the command line.
        settings: The dataclass of the command's settings.
        positional: The positional words as --help shows them: "RUN FILE", "[TABLE]" or
            "[RUN ...]".
        overrides_help: What --help says of the overrides; "" for a command that takes
            none. They stand instead of optional positional words.
        options: The options, which begin with a dash.
        module: The command's module, where the settings are declared in another one.

    Raises:
        UserError: For a line that the command does not take.
    """
    all_fields: Any = fields(settings)  # type: ignore[arg-type]
    grammar = _Grammar(
        fields={key_of_field(item): item for item in all_fields},
        positional=positional,
        overrides_help=overrides_help,
        options={**HELP_OPTION, **options},
        types=get_type_hints(settings),
    )
    parser = grammar.make_parser(sys.modules[module or settings.__module__])
    try:
        parsed, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise UserError(
            f"{str(error).removeprefix('argument ')} ({parser.prog} --help)"
        ) from None
    words = grammar.sort_words(rest, parser.prog)
    grammar.check_count(words, str(parser.usage))
    converted = grammar.convert(words, settings)
    given = {}
    for key in words.settings:
        given[key] = getattr(converted, grammar.fields[key].name)
    given_options = {}
    for name, value in vars(parsed).items():
        given_options[f"--{name.replace('_', '-')}"] = value
    return CommandLine(
        positional=tuple(words.positional),
        settings=converted,
        given=given,
        overrides=tuple(words.overrides),
        options=given_options,
        help=parser.format_help(),
    )


@dataclass
class _Words:
    """The words of a command line by their kind; settings by their keys."""

    positional: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class _Grammar:
    """What a command takes.

    Attributes:
        fields: The fields of the settings, by the keys that are typed.
        positional, overrides_help, options: As `read_command_line` takes them.
        types: The types of the fields, by the fields' names.
    """

    fields: Mapping[str, Field[Any]]
    positional: str
    overrides_help: str
    options: Options
    types: Mapping[str, Any]

    def make_parser(self, command: ModuleType) -> ArgumentParser:
        """A parser of the options. Its help has the options, then the settings, and
        what the command is for: the docstring of its module, `command`."""
        explanations = dict[str, str]()
        for key, item in self.fields.items():
            allowed = _allowed_values(self.types[item.name])
            text = f"{item.metadata['description']} ({allowed})"
            explanations[f"{key}={as_override_value(item.default)}"] = text
        if self.overrides_help:
            explanations["KEY=VALUE ..."] = self.overrides_help
        lines = _two_columns(explanations)
        lines += ["", _wrapped_docstring(inspect.getdoc(command) or "")]
        program = _program_as_typed(command)
        parser = ArgumentParser(
            prog=program,
            usage=f"{program} {self.positional}".rstrip(),
            epilog="\n".join(lines),
            formatter_class=functools.partial(
                RawDescriptionHelpFormatter, max_help_position=36
            ),
            argument_default=SUPPRESS,  # the result has the options that were typed
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        for flags, details in self.options.items():
            parser.add_argument(*flags, **details)
        return parser

    def sort_words(self, rest: Sequence[str], program: str) -> _Words:
        """Sorts the words of a command line that are no options (`rest`) by their kind.
        Raises UserError for a word of no kind that the command takes. program: the
        command as it was typed, for messages."""
        words = _Words()
        for word in rest:
            key, equals, text = word.partition("=")
            takes_overrides = bool(self.overrides_help)
            # overrides stand instead of optional positional words
            if words.positional and self.positional.startswith("["):
                takes_overrides = False
            may_be_override = takes_overrides and key not in self.fields
            if equals and key in self.fields and key not in words.settings:
                words.settings[key] = expand_home(text)
            elif may_be_override and OVERRIDE_START.match(word):
                words.overrides.append(word)
            elif OPTION_OR_SETTING_START.match(word):
                raise self._error_of_word(word, words, rest, program)
            else:
                words.positional.append(word)
        return words

    def _error_of_word(
        self, word: str, words: _Words, rest: Sequence[str], program: str
    ) -> UserError:
        """The error for a word that is no setting and no option of the command, or a
        setting that has been given before. It names the nearest right word."""
        key, equals, _ = word.partition("=")
        name = key.lstrip("-")
        may_be_override = bool(self.overrides_help) and name not in self.fields
        if word.startswith("--") and not equals and may_be_override:
            # --train.lr 0.1 was meant as train.lr=0.1: the next word is the value
            words_after = [*rest[rest.index(word) + 1 :], "VALUE"]
            return UserError(
                f"{word}: no such option. Did you mean {name}={words_after[0]}? "
                f"Groups and keys have no dashes ({program} --help)"
            )
        if key in CONFIG_DIR_FLAGS and not self.overrides_help:
            return UserError(
                f"{key}: leave it out, since records say what ran ({program} --help)"
            )
        kind = "setting" if equals else "option"
        reason = f"no such {kind}"
        if key in words.settings:
            reason = f"{key} is given twice"
        right_words = [f"{setting_key}=" for setting_key in self.fields]
        right_words += [flags[-1] for flags in self.options]
        advice = did_you_mean(key, self.fields, "=")
        if not advice:
            advice = f" Known: {', '.join(right_words)}"
        return UserError(f"{word}: {reason}.{advice} ({program} --help)")

    def check_count(self, words: _Words, usage: str) -> None:
        """Raises UserError for too few or too many positional words."""
        placeholders = self.positional.split()
        # without those of optional words, which are "[RUN" and "...]"
        required = [name for name in placeholders if name[0] not in "[."]
        count = len(words.positional)
        missing = required[count:]
        if missing:
            raise UserError(f"{missing[0]} is missing: {usage} (--help)")
        # a command takes overrides in place of optional words such as [RUN ...]
        if words.positional and words.overrides and not required:
            self._check_blanks(words)
            raise _error_of_surplus([*words.positional, *words.overrides], usage)
        takes_any_number = "..." in self.positional
        if count > len(placeholders) and not takes_any_number:
            surplus = [*words.positional, *words.overrides][len(required) :]
            raise _error_of_surplus(surplus, usage)

    def _check_blanks(self, words: _Words) -> None:
        """Raises UserError for a list with blanks after its commas, as in seed=0, 1."""
        for override in words.overrides:
            if override.endswith(",") and words.positional:
                joined = f"{override}{''.join(words.positional)}"
                raise UserError(
                    f"{override} {words.positional[0]}: a list has no blanks: {joined}"
                )

    def convert(self, words: _Words, settings: type[S]) -> S:
        """The settings, with their types. Raises UserError for a wrong value."""
        texts = dict[str, str | None]()
        for key, text in words.settings.items():
            texts[self.fields[key].name] = None if text == "null" else text
        try:
            return TypeAdapter(settings).validate_python(texts)
        except ValidationError as error:
            keys = {item.name: key for key, item in self.fields.items()}
            raise UserError(describe_mistake(error, keys)) from None


def _error_of_surplus(words: Sequence[str], usage: str) -> UserError:
    """The error for more positional words than a command takes."""
    text = " ".join(words)[:60]
    return UserError(f"the command does not take {text!r}. Usage: {usage} (--help)")


def _program_as_typed(command: ModuleType) -> str:
    """How the command was typed: vera-bench plan, or python -m runs.plan."""
    if sys.argv[0].startswith("vera-bench"):  # vera_bench/__main__.py sets it
        return sys.argv[0]
    if command.__spec__:
        return f"python -m {command.__spec__.name.removesuffix('.__main__')}"
    return sys.argv[0]


def _wrapped(text: str, indent: int = 0) -> str:
    """Text wrapped to the width of the terminal, as argparse wraps options. indent: how
    many blanks are before each line but the first."""
    width = max(indent + 30, min(100, shutil.get_terminal_size().columns) - 2)
    return textwrap.fill(
        text, width, subsequent_indent=" " * indent, break_on_hyphens=False
    )


def _two_columns(explanations: Mapping[str, str]) -> list[str]:
    """Lines with the keys of a mapping on the left, and their texts beside them."""
    width = max(map(len, explanations))
    lines = []
    for key, text in explanations.items():
        lines.append(_wrapped(f"  {key:<{width}}  {text}", width + 4))
    return lines


def _wrapped_docstring(docstring: str) -> str:
    """A docstring with its prose wrapped, and its examples one a line."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        text if EXAMPLE_START.search(text) else _wrapped(text) for text in paragraphs
    )


def _allowed_values(kind: Any) -> str:
    """What a setting of a type takes, in words: "number|null" for int | None, and the
    values of a Literal."""
    alternatives = dict.fromkeys(map(_allowed_values, get_args(kind)))
    return "|".join(alternatives) or VALUE_KINDS.get(kind, str(kind))


def expand_home(text: str) -> str:
    """A value with the home folder for a `~` at its start, which a shell does not
    expand within a word."""
    # by a function, since re.sub would read a backslash in a path as an escape
    return re.sub("^~(?=/|$)", lambda _: str(Path.home()), text)


# --- how a command ends


def entry_point(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits: with 2 and one line for a user's mistake or an error of
    the system, such as a full disk; 130 for Ctrl-C; and 141 without a line where the
    reader of the output has gone (| head).

    With debug=true among the arguments, errors keep their traceback and deprecation
    warnings of libraries are shown. These are also shown with -W or PYTHONWARNINGS."""
    # imported modules stay until the end: searching them for garbage takes longer than
    # composing a run
    gc.freeze()
    debug = any(word.lower() == "debug=true" for word in sys.argv[1:])
    if not (debug or sys.warnoptions):
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
    try:
        code = main(sys.argv[1:])
        print(end="", flush=True)  # here, where an error is still caught below
    except BrokenPipeError as error:
        if _drop_unread_output():
            sys.exit(141)
        code = _code_of_error(error, debug)
    except (Exception, KeyboardInterrupt) as error:
        code = _code_of_error(error, debug)
    sys.exit(code)


def _code_of_error(error: BaseException, debug: bool) -> int:
    """Prints the line of an error, and returns the exit code. Raises an error that is a
    defect of the program, and with debug=true any error."""
    was_interrupted = isinstance(error, KeyboardInterrupt)
    is_known = was_interrupted or isinstance(error, OSError) or is_user_error(error)
    if debug or not is_known:
        raise error
    if was_interrupted:
        line = f"\n{interruption_message()}"
    elif isinstance(error, OSError):
        line = f"error: {describe(error)}"
    else:
        line = f"error: {error_line(str(error))}"
    if process_rank() == 0:  # torchrun starts many processes, and one prints
        print(line, file=sys.stderr)
    return 130 if was_interrupted else 2


def _drop_unread_output() -> bool:
    """Redirects stdout or stderr to /dev/null where its reader has gone, since Python
    would fail again when it flushes the buffer at its end.

    Returns:
        Whether a reader has gone. If not, another pipe broke.
    """
    poll = select.poll()
    # no event is asked for (0): poll then tells only of pipes whose reader has gone.
    # A stream that is closed from the start is None
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll.register(stream.fileno(), 0)
    streams_without_reader = poll.poll(0)
    for stream_number, _ in streams_without_reader:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream_number)
    return bool(streams_without_reader)
