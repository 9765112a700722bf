"""The command line of every command of runs and analysis, and how a command ends.

A command's settings are KEY=VALUE words, as in Hydra: the fields of a dataclass,
converted by pydantic. Options with a dash are argparse's.

    @dataclass(frozen=True)
    class Settings(OfRecords): format: Literal["md", "latex", "csv"] = setting("md",
        "how the table is printed")

    line = read(arguments, Settings, names="TABLE")

`vera-bench COMMAND --help` shows the settings, and the docstring of the dataclass's
module. Examples in it begin with `vera-bench` and stand one a line; what an example
does follows it, on the same line or indented below it.
"""

import difflib
import functools
import gc
import inspect
import json
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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from runs.command.errors import UserError, interrupted_words, is_users, process_rank
from runs.record.folder import RecordFolder
from runs.record.kept_rows import MakesRows
from runs.record.ledger import Ledger, in_conf, read_ledger
from runs.record.schema import Record
from runs.record.text import describe, error_line

#: Options by their names, as argparse's add_argument takes them.
Options = Mapping[tuple[str, ...], Mapping[str, Any]]
HELP: Options = {("-h", "--help"): {"action": "help", "help": "this text"}}
#: At most so many records are searched for a task's newest run.
SEARCHED_RECORDS = 200
#: What a setting takes, by its type.
KINDS = {
    bool: "true|false",
    int: "number",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
}
#: The beginning of an example in the docstring of a command.
EXAMPLE = re.compile(r"^(vera-bench|python -m) ", re.MULTILINE)
#: Hydra's options of the commands that compose runs.
COMPOSING: Options = {
    ("-cd", "--config-dir"): {
        "metavar": "FOLDER",
        "help": "a folder like conf/, of your own",
    },
    ("-m", "--multirun"): {
        "action": "store_true",
        "help": "not needed: a list makes a sweep",
    },
}


def setting(default: Any, about: str, key: str = "") -> Any:
    """A field of settings. about: its line in --help. key: where that is not its name
    (task.bench)."""
    return field(default=default, metadata={"about": about, "key": key})


@dataclass(frozen=True)
class Common:
    """The settings of every command."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)
    debug: bool = setting(False, "an error keeps its traceback")


@dataclass(frozen=True)
class OfRecords(Common):
    """The settings of every command that reads records."""

    output: str = setting("outputs", "the folder of records/ and of what is written")


S = TypeVar("S", covariant=True)


@dataclass(frozen=True)
class Line(Generic[S]):
    """A command line, parsed: positional words, settings, those of them that were given
    (by key), the overrides that compose runs, the options by their long names, and the
    text of --help."""

    names: tuple[str, ...]
    settings: S
    given: dict[str, Any]
    overrides: tuple[str, ...]
    options: Mapping[str, Any]
    help: str

    @property
    def config_dir(self) -> str | None:
        """The folder of --config-dir."""
        return self.options.get("--config-dir")


def read(
    arguments: Sequence[str],
    settings: type[S],
    names: str = "",
    overrides: str = "",
    options: Options = HELP,
    module: str = "",
) -> Line[S]:
    """Parses the command line of a command with these settings.

    names: its positional words as --help shows them, "RUN FILE", "[TABLE]" or "[RUN
    ...]". overrides: the purpose of other KEY=VALUE words, if the command takes any
    (instead of optional names). options: those with a dash. module: the command's, if
    its settings are not its own. Raises UserError."""
    all_fields: Any = fields(settings)  # type: ignore[arg-type]
    grammar = _Grammar(
        keys={item.metadata["key"] or item.name: item for item in all_fields},
        names=names,
        overrides=overrides,
        options={**HELP, **options},
        types=get_type_hints(settings),
    )
    parser = grammar.parser(sys.modules[module or settings.__module__])
    try:
        parsed, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise UserError(
            f"{str(error).removeprefix('argument ')} ({parser.prog} --help)"
        ) from None
    words = grammar.sort(rest, parser.prog)
    grammar.check_count(words, str(parser.usage))
    converted = grammar.convert(words, settings)
    attributes = {key: item.name for key, item in grammar.keys.items()}
    return Line(
        names=tuple(words.positional),
        settings=converted,
        given={key: getattr(converted, attributes[key]) for key in words.settings},
        overrides=tuple(words.overrides),
        options={
            f"--{name.replace('_', '-')}": value for name, value in vars(parsed).items()
        },
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
    """What a command takes; see `read`. keys: the fields of its settings, by what is
    typed. types: of the fields."""

    keys: Mapping[str, Any]
    names: str
    overrides: str
    options: Options
    types: Mapping[str, Any]

    def parser(self, command: ModuleType) -> ArgumentParser:
        """The parser of the options. Its help has them first, then the settings, and
        what the command is for."""
        rows = dict[str, str]()
        for key, item in self.keys.items():
            allowed = _values(self.types[item.name])
            text = f"{item.metadata['about']} ({allowed})"
            rows[f"{key}={as_word(item.default)}"] = text
        if self.overrides:
            rows["KEY=VALUE ..."] = self.overrides
        about = _settings_rows(rows)
        about += ["", _description(inspect.getdoc(command) or "")]
        program = _program(command)
        parser = ArgumentParser(
            prog=program,
            usage=f"{program} {self.names}".rstrip(),
            epilog="\n".join(about),
            formatter_class=functools.partial(
                RawDescriptionHelpFormatter, max_help_position=36
            ),
            argument_default=SUPPRESS,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        for flags, details in self.options.items():
            parser.add_argument(*flags, **details)
        return parser

    def sort(self, rest: Sequence[str], program: str) -> _Words:
        """The words of a command line that are no options, by their kind. Raises
        UserError for one that is none of them."""
        words = _Words()
        for word in rest:
            key, equals, text = word.partition("=")
            # overrides stand in the place of optional names
            has_name = bool(words.positional) and self.names.startswith("[")
            may_compose = bool(self.overrides) and not has_name
            is_override = re.match(r"(?!-).*=|~", word) is not None
            if equals and key in self.keys and key not in words.settings:
                words.settings[key] = at_home(text)
            elif may_compose and key not in self.keys and is_override:
                words.overrides.append(word)
            elif re.match(r"-.|[+~]*[\w.@]+=", word):
                raise self._unknown_word(word, words, rest, program)
            else:
                words.positional.append(word)
        return words

    def _unknown_word(
        self, word: str, words: _Words, rest: Sequence[str], program: str
    ) -> UserError:
        """Why a word is neither a setting nor an option, with the nearest right one."""
        key, equals, _ = word.partition("=")
        name = key.lstrip("-")
        may_be_override = bool(self.overrides) and name not in self.keys
        if word.startswith("--") and not equals and may_be_override:
            following = [*rest, "VALUE"][rest.index(word) + 1]
            return UserError(
                f"{word}: no such option. Did you mean {name}={following}? "
                f"Groups and keys have no dashes ({program} --help)"
            )
        kind = "setting" if equals else "option"
        reason = f"no such {kind}"
        if key in words.settings:
            reason = f"{key} is given twice"
        right_words = [f"{name}=" for name in self.keys]
        right_words += [flags[-1] for flags in self.options]
        advice = did_you_mean(key, self.keys, "=")
        if not advice:
            advice = f" Known: {', '.join(right_words)}"
        return UserError(f"{word}: {reason}.{advice} ({program} --help)")

    def check_count(self, words: _Words, usage: str) -> None:
        """Raises UserError for too few or too many positional words."""
        takes = self.names.split()
        fewest = sum(name[0] not in "[." for name in takes)
        count = len(words.positional)
        limit = count if "..." in self.names else len(takes)
        missing = takes[count:fewest]
        if missing:
            raise UserError(f"{missing[0]} is missing: {usage} (--help)")
        if words.positional and words.overrides and not fewest:
            self._refuse_blanks(words)
            raise _not_taken([*words.positional, *words.overrides], usage)
        if not fewest <= count <= limit:
            raise _not_taken([*words.positional, *words.overrides][fewest:], usage)

    def _refuse_blanks(self, words: _Words) -> None:
        """Raises UserError for a list with blanks after its commas."""
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
            texts[self.keys[key].name] = None if text == "null" else text
        try:
            return TypeAdapter(settings).validate_python(texts)
        except ValidationError as error:
            names = {item.name: key for key, item in self.keys.items()}
            raise UserError(mistake(error, names)) from None


def _not_taken(words: Sequence[str], usage: str) -> UserError:
    return UserError(f"{' '.join(words)[:60]!r}: not what it takes, {usage} (--help)")


def _program(command: ModuleType) -> str:
    """How the command was typed: vera-bench plan, or python -m runs.plan."""
    if sys.argv[0].startswith("vera-bench"):  # vera_bench/__main__.py sets it
        return sys.argv[0]
    if command.__spec__:
        return f"python -m {command.__spec__.name.removesuffix('.__main__')}"
    return sys.argv[0]


def _wrapped(text: str, indent: int = 0) -> str:
    """Text wrapped to the terminal, as argparse wraps options; indent: of the lines
    after the first."""
    width = max(indent + 30, min(100, shutil.get_terminal_size().columns) - 2)
    return textwrap.fill(
        text, width, subsequent_indent=" " * indent, break_on_hyphens=False
    )


def _settings_rows(rows: Mapping[str, str]) -> list[str]:
    """Settings beside what each is for."""
    width = max(map(len, rows))
    return [
        _wrapped(f"  {key:<{width}}  {text}", width + 4) for key, text in rows.items()
    ]


def _description(docstring: str) -> str:
    """A docstring with its prose wrapped, and its examples one a line."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        text if EXAMPLE.search(text) else _wrapped(text) for text in paragraphs
    )


def _values(kind: Any) -> str:
    """What a setting of a type takes, in words: number|null."""
    parts = dict.fromkeys(map(_values, get_args(kind)))
    return "|".join(parts) or KINDS.get(kind, str(kind))


def as_word(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, dict):
        entries = [f"{key}:{as_word(entry)}" for key, entry in value.items()]
        return "{" + ",".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_word, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def at_home(text: str) -> str:
    """A value with the home folder for a `~` at its start, which a shell does not
    expand within a word."""
    return re.sub("^~(?=/|$)", lambda _: str(Path.home()), text)


# --- errors


def did_you_mean(name: str, right_names: Collection[str], suffix: str = "") -> str:
    """A sentence with the nearest right names, to be appended; or nothing. suffix: what
    follows a name."""
    ours = in_conf("other_names.yaml").get(name.rpartition(".")[2], name)
    nearest = [f"{right}{suffix}" for right in _nearest(str(ours), right_names)]
    return f" Did you mean {' or '.join(nearest)}?" if nearest else ""


def _nearest(name: str, right_names: Collection[str]) -> list[str]:
    """The names that someone may have meant."""
    last = name.rpartition(".")[2]
    in_other_case = [right for right in right_names if right.lower() == name.lower()]
    longer = [right for right in right_names if right.startswith(f"{name}_")]
    within = [right for right in right_names if right.endswith(f".{last}")]
    swapped = [right for right in right_names if sorted(right) == sorted(name)]
    for names in (in_other_case, longer[:4], within[:1], swapped[:1]):
        if names:
            return names
    return difflib.get_close_matches(name, right_names, 1, 0.75)


def mistake(
    error: ValidationError, names: Mapping[str, str] | None = None, within: str = ""
) -> str:
    """The first mistake that pydantic has found, in one line: the override that is
    wrong, what it should be, and the nearest right name. names: of fields, on the
    command line. within: the key that this is a part of."""
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    context = first.get("ctx", {})
    parts = [(names or {}).get(str(part), str(part)) for part in first["loc"]]
    key = ".".join([within, *parts] if within else parts)
    if kind == "value_error" and str(context["error"]):
        return str(context["error"])
    if kind == "missing":
        return f"{key} is missing"
    if kind in ("extra_forbidden", "value_error"):
        return f"no key {key!r}"
    allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    advice = did_you_mean(str(first["input"]), allowed)
    text = f"{first['msg'].removeprefix('Input ')}.{advice}"
    return f"{key}={as_word(first['input'])}: {text}".rstrip(".")


def one_of(kind: str, name: str, right_names: Collection[str]) -> str:
    """The name, if it is one of the right ones. Raises UserError with the nearest name,
    and all names. kind: what it names, such as "card"."""
    if name not in right_names:
        advice = did_you_mean(name, right_names)
        names = ", ".join(right_names)
        raise UserError(f"no {kind} {name!r}.{advice} Known: {names}")
    return name


def open_ledger(
    output: str | Path,
    published: bool = True,
    make_row: MakesRows | None = None,
) -> Ledger:
    """`read_ledger`, which also prints the files that are no records to stderr."""
    ledger = read_ledger(output, published, make_row)
    # records stay until the command ends: garbage collection need not search them
    gc.freeze()
    for problem in ledger.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return ledger


def find_record(ledger: Ledger, name: str, output: str | Path) -> Record:
    """The record whose id begins so: of this machine, else a published one. UserError
    for none or several."""
    ids = [run_id for run_id in ledger.records if name and run_id.startswith(name)]
    ids = [run_id for run_id in ids if ledger.origin[run_id] == "ours"] or ids
    if len(ids) == 1:
        return ledger.whole_record(ids[0])
    advice = ""
    if ids:
        advice = f" ({', '.join(sorted(ids)[:3])}, ...): give more of the id"
    else:
        advice = _advice_on_task(name, output)
    count = len(ids) or "no"
    raise UserError(
        f"{count} records begin with {name!r} in {output}/records or published{advice}"
    )


def _advice_on_task(name: str, output: str | Path) -> str:
    """Where a task's name is given in place of a run: the newest run of it here."""
    for record in RecordFolder(output).newest(SEARCHED_RECORDS):
        label = record["label"]
        names = (label["task"], record["cell"]["task"])
        if name not in names or record["status"] != "done":
            continue
        run = label["row"]
        fold = record["config"]["task"].get("fold")
        if fold is not None:
            run += f", task.fold={fold}"
        return f". {name!r} is a task. Its newest run here is {record['id']} ({run})"
    return ""


# --- how a command ends


def entry_point(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits: with 2 and one line for a user's mistake or a full
    disk, 130 for Ctrl-C, and 141 without a line where the reader of the output has gone
    (| head).

    With debug=true among the arguments, errors keep their traceback and deprecation
    warnings of libraries are shown. These are also shown with -W or PYTHONWARNINGS."""
    # imported modules stay: searching them for garbage takes longer than composing a
    # run
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
    """Prints the line of an error, and returns the exit code. Raises the error where it
    is nobody's mistake, or debug=true."""
    stopped = isinstance(error, KeyboardInterrupt)
    is_known = stopped or isinstance(error, OSError) or is_users(error)
    if debug or not is_known:
        raise error
    if stopped:
        line = f"\n{interrupted_words()}"
    elif isinstance(error, OSError):
        line = f"error: {describe(error)}"
    else:
        line = f"error: {error_line(str(error))}"
    if not process_rank():  # of torchrun's processes the first one prints
        print(line, file=sys.stderr)
    return 130 if stopped else 2


def _drop_unread_output() -> bool:
    """Redirects the output to /dev/null where its reader has gone, since Python would
    fail again when it flushes the buffer at its end. Returns whether that is so; else
    another pipe broke."""
    poll = select.poll()
    # a stream that is closed from the start is None
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll.register(stream.fileno(), 0)
    without_reader = poll.poll(0)
    for number, _ in without_reader:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(without_reader)
