"""The command line of every command of runs and analysis, and how a command ends.

A command's settings are KEY=VALUE words, as in Hydra: the fields of a dataclass,
converted by pydantic. Options with a dash are argparse's.

    @dataclass(frozen=True)
    class Settings(OfRecords): format: Literal["md", "latex", "csv"] = setting("md",
        "how the table is printed")

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

from runs.errors import UserError, interrupted_words, is_users, rank
from runs.record import Ledger, Record, describe, in_conf, read_ledger, refusal

#: Options by their names, as argparse's add_argument takes them.
Options = Mapping[tuple[str, ...], Mapping[str, Any]]
HELP: Options = {("-h", "--help"): {"action": "help", "help": "this text"}}
#: What a setting takes, by its type.
KINDS = {
    bool: "true|false",
    int: "number",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
}
#: Hydra's options of the commands that compose runs.
COMPOSING: Options = {
    ("-cd", "--config-dir"): {
        "metavar": "FOLDER",
        "help": "presets, rows, models and tasks from elsewhere",
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

    output: str = setting(
        "outputs", "the folder that holds records/; what is written goes there, too"
    )


S = TypeVar("S")


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
    keys = {one.metadata["key"] or one.name: one for one in fields(settings)}  # type: ignore[arg-type]
    command, options = sys.modules[module or settings.__module__], {**HELP, **options}
    parser = _parser(command, settings, names, overrides, options)
    try:
        found, words = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise UserError(
            f"{str(error).removeprefix('argument ')} ({parser.prog} --help)"
        ) from None
    positional, others, given = list[str](), list[str](), dict[str, str]()
    for word in words:
        key, equals, text = word.partition("=")
        # in place of names
        composes = overrides and not (positional and names.startswith("["))
        if equals and key in keys and key not in given:
            given[key] = at_home(text)
        elif composes and key not in keys and re.match(r"(?!-).*=|~", word):
            others.append(word)
        elif re.match(r"-.|[+~]*[\w.@]+=", word):
            why = (
                f"{key} is given twice"
                if key in given
                else f"no such {'setting' if equals else 'option'}"
            )
            known = [*(f"{k}=" for k in keys), *(flags[-1] for flags in options)]
            near = did_you_mean(key, keys, "=") or f" Known: {', '.join(known)}"
            raise UserError(f"{word}: {why}.{near} ({parser.prog} --help)")
        else:
            positional.append(word)
    takes = names.split()
    fewest, most = (
        sum(name[0] not in "[." for name in takes),
        len(positional if "..." in names else takes),
    )
    if positional and (missing := takes[len(positional) : fewest]):
        raise UserError(f"{missing[0]} is missing: {parser.usage} (--help)")
    if not fewest <= len(positional) <= most or (others and positional and not fewest):
        wrong = [*positional, *others][fewest if positional else 0 :]
        raise UserError(
            f"{' '.join(wrong)[:60]!r}: not what it takes, {parser.usage} (--help)"
        )
    plain = {
        keys[key].name: None if text == "null" else text for key, text in given.items()
    }
    try:
        chosen = TypeAdapter(settings).validate_python(plain)
    except ValidationError as error:
        raise UserError(
            mistake(error, {one.name: key for key, one in keys.items()})
        ) from None
    values = {key: getattr(chosen, keys[key].name) for key in given}
    dashed = {
        f"--{name.replace('_', '-')}": value for name, value in vars(found).items()
    }
    return Line(
        tuple(positional), chosen, values, tuple(others), dashed, parser.format_help()
    )


def _parser(
    mod: ModuleType, settings: type, names: str, overrides: str, options: Options
) -> ArgumentParser:
    """The parser of the options. Its help has them first, then the settings, and what
    the command is for."""
    spec, rows, kinds = mod.__spec__, dict[str, str](), get_type_hints(settings)
    program = (
        f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]
    )
    for one in fields(settings):
        key = f"{one.metadata['key'] or one.name}={as_word(one.default)}"
        rows[key] = f"{one.metadata['about']} ({_values(kinds[one.name])})"
    rows |= {"KEY=VALUE ...": overrides} if overrides else {}
    width = max(map(len, rows))
    about = [
        *(f"  {key:<{width}}  {rows[key]}" for key in rows),
        "",
        inspect.getdoc(mod) or "",
    ]
    parser = ArgumentParser(
        prog=program,
        usage=f"{program} {names}".rstrip(),
        epilog="\n".join(about),
        formatter_class=RawDescriptionHelpFormatter,
        argument_default=SUPPRESS,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    for flags, how in options.items():
        parser.add_argument(*flags, **how)
    return parser


def _values(kind: Any) -> str:
    """What a setting of a type takes, in words: number|null."""
    return "|".join(dict.fromkeys(map(_values, get_args(kind)))) or KINDS.get(
        kind, str(kind)
    )


def as_word(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_word(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_word, value)) + "]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def at_home(text: str) -> str:
    """A value with the home folder for a `~` at its start, which a shell does not
    expand within a word."""
    return re.sub("^~(?=/|$)", lambda _: str(Path.home()), text)


# --- errors


def did_you_mean(word: str, known: Collection[str], after: str = "") -> str:
    """A sentence with the nearest right names, to be appended; or nothing. after: what
    follows a name."""
    wanted = in_conf("other_names.yaml").get(word.rpartition(".")[2], word)
    near = (
        [name for name in known if name.lower() == wanted.lower()]
        or [name for name in known if name.startswith(f"{wanted}_")][:4]
        or [name for name in known if name.endswith(f".{wanted.rpartition('.')[2]}")][
            :1
        ]
        # two letters, swapped
        or [name for name in known if sorted(name) == sorted(wanted)][:1]
        or difflib.get_close_matches(wanted, known, 1, 0.75)
    )
    return (
        f" Did you mean {' or '.join(f'{name}{after}' for name in near)}?"
        if near
        else ""
    )


def mistake(
    error: ValidationError, names: Mapping[str, str] | None = None, within: str = ""
) -> str:
    """The first mistake that pydantic has found, in one line: the word that is wrong,
    what it should be, and the nearest right name. names: of fields, on the command
    line. within: the key that this is a part of."""
    first = error.errors(include_url=False)[0]
    parts = ((names or {}).get(str(part), str(part)) for part in first["loc"])
    key, kind = ".".join(filter(None, (within, *parts))), first["type"]
    if kind in ("value_error", "missing", "extra_forbidden"):
        own = str(first["ctx"]["error"]) if kind == "value_error" else ""
        return own or (f"{key} is missing" if kind == "missing" else f"no key {key!r}")
    allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
    text = f"{first['msg'].removeprefix('Input ')}.{did_you_mean(str(first['input']), allowed)}"
    return f"{key}={as_word(first['input'])}: {text}".rstrip(".")


def one_of(what: str, name: str, known: Collection[str]) -> str:
    """The name, if it is known. Raises UserError with the nearest name, and all
    names."""
    if name not in known:
        raise UserError(
            f"no {what} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"
        )
    return name


def open_ledger(output: str | Path, published: bool = True) -> Ledger:
    """`read_ledger`, which also prints the files that are no records to stderr."""
    ledger = read_ledger(output, published)
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
    if len(ids) != 1:
        several = (
            f" ({', '.join(sorted(ids)[:3])}, ...): give more of the id" if ids else ""
        )
        count = len(ids) or "no"
        raise UserError(
            f"{count} records begin with {name!r} in {output}/records or published{several}"
        )
    return ledger.records[ids[0]]


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
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _drop_unread_output():
            code = 141
        elif debug or (
            not isinstance(error, KeyboardInterrupt | OSError) and not is_users(error)
        ):
            raise
        else:
            stopped = isinstance(error, KeyboardInterrupt)
            text = (
                describe(error) if isinstance(error, OSError) else refusal(str(error))
            )
            if not rank():  # of torchrun's processes the first one prints
                print(
                    f"\n{interrupted_words()}" if stopped else f"error: {text}",
                    file=sys.stderr,
                )
            code = 130 if stopped else 2
    sys.exit(code)


def _drop_unread_output() -> bool:
    """Redirects the output to /dev/null where its reader has gone, since Python would
    fail again when it flushes the buffer at its end. Returns whether that is so; else
    another pipe broke."""
    poll = select.poll()
    # a stream that is closed from the start is None
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll.register(stream.fileno(), 0)
    for number, _ in (gone := poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(gone)
