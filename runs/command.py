"""The command line of every command of runs and analysis, and how a command ends.

A command's settings are KEY=VALUE words, as in Hydra: the fields of a dataclass, converted by pydantic.

    @dataclass(frozen=True)
    class Settings(OfRecords):
        format: Literal["md", "latex", "csv"] = setting("md", "how the table is printed")

    line = read(arguments, Settings, names="TABLE")

`python -m ... --help` shows the settings, and the docstring of the dataclass's module.
"""

import difflib
import gc
import inspect
import json
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from runs.errors import UserError, interrupted_words, is_users, rank
from runs.record import Ledger, Record, read_ledger
from runs.record.text import describe, refusal


@dataclass(frozen=True)
class Option:
    """An option with a dash. names: short and long. value: what follows it, as --help shows it, "[WHAT]"
    where it may be left out, "" for nothing. taken: else it is refused, and `about` says what to do."""

    names: tuple[str, ...]
    about: str
    value: str = ""
    taken: bool = True


#: Hydra's options of the commands that compose runs.
COMPOSING = (
    Option(("-cd", "--config-dir"), "presets, rows, models and tasks from elsewhere, too", "FOLDER"),
    Option(("-m", "--multirun"), "accepted, and not needed: a list makes a sweep"),
)


def setting(default: Any, about: str, key: str = "") -> Any:
    """A field of a dataclass of settings. about: its line in --help. key: its key on the command line, where
    that is not the field's name (task.bench)."""
    return field(default=default, metadata={"about": about, "key": key})


@dataclass(frozen=True)
class Common:
    """The settings of every command."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)
    debug: bool = setting(False, "an error keeps its traceback")


@dataclass(frozen=True)
class OfRecords(Common):
    """The settings of every command that reads records."""

    output: str = setting("outputs", "the folder that holds records/; what is written goes there, too")


S = TypeVar("S")


@dataclass(frozen=True)
class Line(Generic[S]):
    """A command line, parsed: positional words, settings, those of them that were given (by key), the
    overrides that compose runs, and the options by their long names."""

    names: tuple[str, ...]
    settings: S
    given: dict[str, Any]
    overrides: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def config_dir(self) -> str | None:
        """The folder of --config-dir."""
        return self.options.get("--config-dir")


def read(
    arguments: Sequence[str],
    settings: type[S],
    names: str = "",
    overrides: str = "",
    options: Sequence[Option] = (),
) -> Line[S]:
    """Parses the command line of a command with these settings.

    names: its positional words as --help shows them, "RUN FILE", "[TABLE]" or "[RUN ...]". overrides: the
    purpose of other KEY=VALUE words, if the command takes any (instead of optional names). options: those
    with a dash; without one for --help, this prints the help. Raises UserError for a mistake, SystemExit
    after --help."""
    usage = f"{_program(settings)} {names}".rstrip()
    keys = {(f.metadata["key"] or f.name): f.name for f in fields(settings)}  # type: ignore[arg-type]
    known = {name: option for option in options for name in option.names}
    if "--help" not in known and {"-h", "--help"} & set(arguments):
        print(help_of(settings, names, overrides, options), flush=True)
        sys.exit(0)

    def unknown(what: str, shown: str) -> UserError:
        near = (
            did_you_mean(shown.strip("-").partition("=")[0], keys, "=")
            or f" Known: {', '.join(f'{key}=' for key in keys)}"
        )
        return UserError(f"no {what} {shown}.{near} ({usage} --help)")

    positional, others, found, given = list[str](), list[str](), dict[str, str](), dict[str, str]()
    words = [*arguments]
    while words:
        word = words.pop(0)
        key, equals, text = word.partition("=")
        if key in known and not (equals and known[key].taken and not known[key].value):
            found[known[key].names[-1]] = _value(known[key], key, text, words)
        elif re.match("-.", word):
            raise unknown("option", word)
        elif equals and key in given:
            raise UserError(f"{word}: {key} is given twice")
        elif equals and key in keys:
            given[key] = at_home(text)
        elif overrides and (equals or word.startswith("~")):
            others.append(word)
        elif equals and re.fullmatch(r"[+~]*[\w.@-]+", key):
            raise unknown("setting", f"{key}=")
        else:
            positional.append(word)
    if others and positional and names.startswith("["):  # names or what composes runs, not both
        raise unknown("setting", f"{others[0].partition('=')[0]}=")
    shown = names.split()
    for name in [name for name in shown if name[0] not in "[."][len(positional) :]:
        raise UserError(f"{name} is missing: {usage} (--help)")
    if len(positional) > len(shown) and "..." not in names:
        raise UserError(f"{positional[len(shown)][:60]!r} is too much: {usage} (--help)")
    plain = {keys[key]: None if text == "null" else text for key, text in given.items()}
    try:
        chosen = TypeAdapter(settings).validate_python(plain)
    except ValidationError as error:
        raise UserError(mistake(error, {name: key for key, name in keys.items()})) from None
    values = {key: getattr(chosen, keys[key]) for key in given}
    return Line(tuple(positional), chosen, values, tuple(others), found)


def _program(settings: type) -> str:
    spec = getattr(inspect.getmodule(settings), "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


def _value(option: Option, name: str, text: str, words: list[str]) -> str:
    """An option's value: after its `=`, or the next word, which is then taken from `words`."""
    if not option.taken:
        raise UserError(f"{name} is not taken here: {option.about}")
    optional = option.value.startswith("[")
    if option.value and not text and words and not (optional and re.search("^-|=", words[0])):
        text = words.pop(0)
    if option.value and not (text or optional):
        raise UserError(f"{name}: its value is missing")
    return text


def help_of(settings: type, names: str, overrides: str = "", options: Sequence[Option] = ()) -> str:
    """The text of --help: the settings and options first, then what the command is for."""
    rows = {" ".join([", ".join(one.names), one.value]): one.about for one in options if one.taken}
    for one in fields(settings):
        kind = one.type.__name__ if isinstance(one.type, type) else str(one.type).removeprefix("typing.")
        rows[f"{one.metadata['key'] or one.name}={as_word(one.default)}"] = (
            f"{one.metadata['about']} ({kind})"
        )
    rows |= {"KEY=VALUE ...": overrides} if overrides else {}
    width = max(map(len, rows))
    lines = [f"{_program(settings)} {names}".rstrip(), *(f"  {left:<{width}}  {rows[left]}" for left in rows)]
    return "\n".join([*lines, "", str(inspect.getdoc(inspect.getmodule(settings)))])


def as_word(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_word(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_word, value)) + "]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def at_home(text: str) -> str:
    """A value with the home folder for a `~` at its start, which a shell does not expand within a word."""
    return re.sub("^~(?=/|$)", lambda _: str(Path.home()), text)


# --- errors


def mistake(error: ValidationError, names: Mapping[str, str] | None = None, within: str = "") -> str:
    """The first mistake that pydantic has found, in one line: the word that is wrong, what it should be, and
    the nearest right name. names: of fields, on the command line. within: the key that this is a part of."""
    first = error.errors(include_url=False)[0]
    parts = ((names or {}).get(str(part), str(part)) for part in first["loc"])
    key = ".".join(filter(None, (within, *parts)))
    if first["type"] in ("value_error", "missing"):
        return str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{key} is missing"
    allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    kind = f"one of {', '.join(allowed)}" if allowed else kinds.get(first["type"].partition("_")[0])
    text = f"should be {kind}" if kind else first["msg"].removeprefix("Input ")
    if isinstance(first["input"], list):
        text += f". A sweep has no brackets: {key}={','.join(map(as_word, first['input']))}"
    return f"{key}={as_word(first['input'])}: {text}.{did_you_mean(str(first['input']), allowed)}".rstrip(".")


def did_you_mean(word: str, known: Collection[str], after: str = "") -> str:
    """A sentence with the nearest right name, to be appended to others; or nothing."""
    near = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {near[0]}{after}?" if near else ""


def one_of(what: str, name: str, known: Collection[str]) -> str:
    """The name, if it is known. Raises UserError with the nearest name, and all names."""
    if name not in known:
        raise UserError(f"no {what} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return name


def open_ledger(output: str | Path, published: bool = True) -> Ledger:
    """`read_ledger`, which also prints the files that are no records to stderr."""
    ledger = read_ledger(output, published)
    gc.freeze()  # records stay until the command ends: garbage collection need not search them
    for problem in ledger.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return ledger


def find_record(ledger: Ledger, name: str, output: str | Path) -> Record:
    """The record whose id begins with `name`: of this machine or, where it has none, a published one. Raises
    UserError for none and for several."""
    ids = [run_id for run_id in ledger.records if name and run_id.startswith(name)]
    ids = [run_id for run_id in ids if ledger.origin[run_id] == "ours"] or ids
    if len(ids) != 1:
        several = f" ({', '.join(sorted(ids)[:3])}, ...): give more of the id" if ids else ""
        count = len(ids) or "no"
        raise UserError(f"{count} records begin with {name!r} in {output}/records or published{several}")
    return ledger.records[ids[0]]


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
        else:
            stopped = isinstance(error, KeyboardInterrupt)
            text = describe(error) if isinstance(error, OSError) else refusal(str(error))
            if not rank():  # of torchrun's processes the first one prints
                print(f"\n{interrupted_words()}" if stopped else f"error: {text}", file=sys.stderr)
            code = 130 if stopped else 2
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
