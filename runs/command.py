"""The command line of every command of runs and analysis, and how a command ends.

A command's settings are KEY=VALUE words, as in Hydra, and the fields of a dataclass:

    @dataclass(frozen=True)
    class Settings(OfRecords):
        format: Literal["md", "latex", "csv"] = setting("md", "how the table is printed")

    line = read(arguments, Settings, names="TABLE")

`python -m ... --help` shows the docstring of the dataclass's module, and the settings.
"""

import difflib
import gc
import inspect
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from runs.errors import UserError, interrupted_words, is_users, rank
from runs.record import Ledger, read_ledger
from runs.record.text import describe, refusal

#: Options of Hydra that commands pass on to compose runs, and whether a value follows.
COMPOSING = {"-m": False, "--multirun": False, "-cd": True, "--config-dir": True}

#: For each type of a setting: the conversion from text, the pattern of the text, and the type in words.
_KINDS: dict[Any, tuple[Callable[[str], Any], str, str]] = {
    bool: (lambda text: text.lower() == "true", "(?i)true|false", "true or false"),
    int: (int, "[+-]?[0-9]{1,18}", "a whole number"),
    float: (float, r"(?i)[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,2})?", "a number"),
    Path: (Path, "(?s).+", "a path"),
    str: (str, "(?s).*", "text"),
}


def setting(default: Any, about: str, key: str = "") -> Any:
    """A field of a dataclass of settings. about: its line in --help. key: its key on the command line, where
    that is not the field's name (task.bench)."""
    return field(default=default, metadata={"about": about, "key": key})


@dataclass(frozen=True)
class Common:
    """The settings of every command."""

    debug: bool = setting(False, "an error keeps its traceback")


@dataclass(frozen=True)
class OfRecords(Common):
    """The settings of every command that reads records."""

    output: str = setting("outputs", "the folder that holds records/; what is written goes there, too")


S = TypeVar("S", bound=Common)


@dataclass(frozen=True)
class Line(Generic[S]):
    """A command line, parsed: positional words, settings, those of them that were given (by key), and the
    overrides and options that compose runs."""

    names: tuple[str, ...]
    settings: S
    given: dict[str, Any]
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def composing(self, output: str) -> list[str]:
        """The arguments for runs.config.expand."""
        return [*self.options, *self.overrides, f"output={output}"]


def read(
    arguments: Sequence[str],
    settings: type[S],
    names: str = "",
    overrides: str = "",
    passes: Mapping[str, bool] | None = None,
) -> Line[S]:
    """Parses the command line of a command with these settings.

    names: its positional words as --help shows them, "RUN FILE", "[TABLE]" or "[RUN ...]". overrides: the
    purpose of other KEY=VALUE words, if the command takes any (instead of optional names). passes: the
    options that are passed on, and whether a value follows. Raises UserError for a mistake, SystemExit after
    --help.
    """
    module, passes = inspect.getmodule(settings), passes or {}
    spec = getattr(module, "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]
    kinds = get_type_hints(settings)
    keys = {(f.metadata["key"] or f.name): f for f in fields(settings)}
    if {"-h", "--help"} & set(arguments):
        print(f"{inspect.getdoc(module)}\n\n{program} {names}".rstrip(), end=" [KEY=VALUE ...]\n")
        width = max(len(f"{key}={_word(f.default)}") for key, f in keys.items())
        for key, f in keys.items():
            about = f"{_what(kinds[f.name])}: {f.metadata['about']}"
            print(f"  {f'{key}={_word(f.default)}':<{width}}  {about}")
        if overrides:
            print(f"  other KEY=VALUE words: {overrides}; options for them: {', '.join(passes) or 'none'}")
        print(end="", flush=True)
        sys.exit(0)
    positional, others, options, given = list[str](), list[str](), list[str](), dict[str, Any]()
    words = iter(arguments)
    for word in words:
        key, equals, text = word.partition("=")
        if key in passes and (passes[key] or not equals):
            options += _option(word, passes[key], words)
        elif re.match("-.", word):
            raise UserError(_no_option(word, next(words, ""), {k: kinds[f.name] for k, f in keys.items()}))
        elif equals and key in keys:
            if key in given:
                raise UserError(f"{word}: {key} is given twice")
            given[key] = _value(word, text, kinds[keys[key].name])
        elif overrides and (equals or word.startswith("~")):
            others.append(word)
        elif equals and re.fullmatch(r"[+~]*[\w.@-]+", key):
            raise _no_setting(key, keys, program)
        else:
            positional.append(word)
    if others and positional and names.startswith("["):  # names or what composes runs, not both
        raise _no_setting(others[0].partition("=")[0], keys, program)
    _count(positional, names, f"{program} {names}".rstrip())
    chosen = settings(**{keys[key].name: value for key, value in given.items()})
    return Line(tuple(positional), chosen, given, tuple(others), tuple(options))


def _option(word: str, valued: bool, words: Iterator[str]) -> list[str]:
    """An option that is passed on, with its value."""
    name, _, text = word.partition("=")
    if valued and not text and (text := next(words, "")) == "":
        raise UserError(f"{name}: its value is missing")
    return [name, text] if valued else [name]


def _no_setting(key: str, keys: Collection[str], program: str) -> UserError:
    near = did_you_mean(key, keys, "=") or f" Known: {', '.join(f'{name}=' for name in keys)}"
    return UserError(f"no setting {key}=.{near} ({program} --help)")


def _no_option(word: str, following: str, kinds: Mapping[str, Any]) -> str:
    """The error for an option, with what to write instead."""
    name, equals, text = word.lstrip("-").partition("=")
    known = [key for key in kinds if key == name] or difflib.get_close_matches(name, kinds, 1)
    if not known:
        return f"no option {word}. Settings are words: {', '.join(f'{key}=' for key in kinds)} (--help)"
    if not equals:
        takes = following and "=" not in following and not following.startswith("-")
        text = "true" if kinds[known[0]] is bool else following if takes else "VALUE"
    return f"no option {word}. Settings are words: {known[0]}={text}"


def _value(word: str, text: str, kind: Any) -> Any:
    """The value of a setting's text. Raises UserError where it does not have the setting's type."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    text = re.sub("^~(?=/|$)", lambda _: str(Path.home()), text)  # a shell does not expand it within a word
    if NoneType in kinds and text == "null":
        return None
    for one in kinds:
        if get_origin(one) is Literal:
            if text in get_args(one):
                return text
        elif one is not NoneType and re.fullmatch(_KINDS[one][1], text):
            return _KINDS[one][0](text)
    near = did_you_mean(text, [c for one in kinds if get_origin(one) is Literal for c in get_args(one)])
    raise UserError(f"{word}: should be {_what(kind)}{near and f'.{near}'}")


def _what(kind: Any) -> str:
    """A type in words."""
    if isinstance(kind, UnionType):
        return ", or ".join(_what(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return "null" if kind is NoneType else _KINDS[kind][2]


def _word(value: Any) -> str:
    """A default as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _count(given: Sequence[str], names: str, usage: str) -> None:
    """Raises UserError where there are more or fewer positional words than the command takes."""
    shown = names.split()
    needed = [name for name in shown if name[0] not in "[."]
    if len(given) < len(needed):
        raise UserError(f"{needed[len(given)]} is missing: {usage} (--help)")
    if len(given) > len(shown) and "..." not in names:
        raise UserError(f"{given[len(shown)]!r} is too much: {usage} (--help)")


def did_you_mean(word: str, known: Collection[str], after: str = "") -> str:
    """A sentence with the nearest right name, to be appended to others; or nothing."""
    near = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {near[0]}{after}?" if near else ""


def one_of(what: str, name: str, known: Collection[str]) -> str:
    """The name, if it is known. Raises UserError with the nearest name, and all names."""
    if name not in known:
        raise UserError(f"no {what} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return name


def open_ledger(output: str | Path, published: bool = True, wanted: Collection[str] | None = None) -> Ledger:
    """`read_ledger`, which also prints the files that are no records to stderr."""
    ledger = read_ledger(output, published, wanted)
    gc.freeze()  # records stay until the command ends: garbage collection need not search them
    for problem in ledger.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return ledger


# --- how a command ends


def entry_point(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits: with 2 and one line for a user's mistake or a full disk, 130 for Ctrl-C, and
    141 without a line where the reader of the output has gone (| head).

    With debug=true among the arguments, errors keep their traceback and deprecation warnings of libraries are
    shown. These are also shown with -W or PYTHONWARNINGS.
    """
    gc.freeze()  # imported modules stay: searching them for garbage takes longer than composing a run
    debug = any(word.lower() == "debug=true" for word in sys.argv[1:])
    if not (debug or sys.warnoptions):
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
    try:
        code = main(sys.argv[1:])
        print(end="", flush=True)  # here, where an error is still caught below
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _drop_unread_output():
            code = 141
        elif debug or (not isinstance(error, KeyboardInterrupt | OSError) and not is_users(error)):
            raise
        elif isinstance(error, KeyboardInterrupt):
            print(f"\n{interrupted_words()}", file=sys.stderr)
            code = 130
        else:
            text = describe(error) if isinstance(error, OSError) else refusal(str(error))
            if not rank():  # of torchrun's processes the first one prints
                print(f"error: {text}", file=sys.stderr)
            code = 2
    sys.exit(code)


def _drop_unread_output() -> bool:
    """Redirects the output to /dev/null where its reader has gone, since Python would fail again when it
    flushes the buffer at its end. Returns whether that is so; else another pipe broke."""
    gone = False
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a stream that is closed from the start is None
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            gone = True
    return gone
