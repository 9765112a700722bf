"""Odd files among a ledger's records, and each command that reads them."""

import copy
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from running import do
from tiny import save_tiny, write_glue

import runs.command
import runs.record
from attack.cases import Case, Home, WrongError
from runs.record.text import HIDDEN

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "runs" / "records" / "glue_minilm"
#: Without these nothing is a record, and whoever lists what is odd has to name it.
ESSENTIAL = ("id", "schema", "status", "cell", "config", "label")
WRONG: dict[str, Any] = {
    "missing": None,
    "null": None,
    "a list": [1],
    "a mapping": {"a": 1},
    "a text": "x",
    "no text": "",
    "huge": 10**300,
    "negative": -1,
    "a fraction": 0.5,
    "NaN as text": "NaN",
    "true": True,
    "deep": [[[[[[[[]]]]]]]],
    "an HTML text": "<b>\n=1+1",
    "an escape": "\x1b]0;PWN\x07\x1b[2J\u202e",
}


@dataclass
class Odd:
    """An odd file: its name, how it is put into a folder, and whether it is certainly no record."""

    name: str
    what: str
    put: Callable[[Path], object]
    certain: bool


@dataclass
class Command:
    """A command that reads a ledger. shown: what a folder's sound records bring about, in its output or in
    its files."""

    name: str
    module: str
    words: Callable[[Path], list[str]]
    lists: bool = False  # tells of each odd file on the screen
    shown: Callable[[Path, str], bool] = lambda folder, text: True
    studies: bool = False  # reads the published studies alone


def cases(home: Home) -> Iterator[Case]:
    place = home.place()
    ledger = Ledger(place)
    dice = home.dice("records")
    one = [(path, how) for path in paths(ledger.odd) for how in WRONG]
    several = [dice.sample(one, dice.randrange(2, 6)) for _ in range(10 if home.short else 150)]
    mutations = [*([m] for m in (dice.sample(one, 90) if home.short else one)), *several]
    mutations += [[((key,), "missing")] for key in ESSENTIAL[2:]]
    groups = {
        "records, one thing or several changed": [
            mutated(ledger.odd, number, m) for number, m in enumerate(mutations)
        ],
        "files that hold no record": contents(ledger.odd),
        "folders, pipes, devices, links and names": no_files(home),
    }
    for command in ledger.commands:
        yield ledger.case("sound records", command, [])
    for kind, odds in groups.items():
        for command in dice.sample(ledger.commands, 4) if home.short else ledger.commands:
            yield ledger.case(kind, command, odds)
    for odd in dice.sample(groups["records, one thing or several changed"], 1 if home.short else 12):
        for name in ("evaluate", "export"):
            yield ledger.asked_for(name, odd)


# --- odd things


def paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict) and len(path) < 3:
            yield from paths(value, (*path, key))


def mutated(record: dict[str, Any], number: int, changes: Sequence[tuple[tuple[str, ...], str]]) -> Odd:
    made = copy.deepcopy(record)
    made["id"] = f"{number:012x}"
    made["cell"]["seed"] = made["config"]["seed"] = number
    for path, how in changes:
        node = made
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[path[-1]] = WRONG[how]
            if how == "missing":
                del node[path[-1]]
    what = ", ".join(f"{'.'.join(path)} {how}" for path, how in changes)
    certain = any(
        len(path) == 1 and path[0] in ESSENTIAL and how in ("missing", "null", "a list", "deep")
        for path, how in changes
    ) or [how for _, how in changes] == ["an escape"]
    return Odd(f"{number:012x}.json", what, lambda place: place.write_text(json.dumps(made)), certain)


def contents(record: dict[str, Any]) -> list[Odd]:
    text = json.dumps(record)
    texts: dict[str, bytes | str] = {
        "empty": "",
        "cut short": text[: len(text) // 2],
        "null bytes": bytes(500),
        "NaN": text.replace('"steps": ', '"steps": NaN, "x": '),
        "infinity": text.replace('"steps": ', '"steps": Infinity, "x": '),
        "1e999": text.replace('"steps": ', '"steps": 1e999, "x": '),
        "utf-16": text.encode("utf-16"),
        "latin-1": text.replace("VeRA", "VéRA").replace("LoRA", "LéRA").encode("latin-1"),
        "deep": "[" * 100_000,
        "deep inside": text[:-1] + ', "x": ' + "[" * 5000 + "]" * 5000 + "}",
        "a future schema": json.dumps(record | {"schema": 99}),
        "an old schema without the rest": '{"id": "%s", "schema": 1}',
        "nothing but an id": '{"id": "%s", "schema": 2}',
        "a list": "[]",
        "a text": '"x"',
        "null": "null",
        "another id": json.dumps(record | {"id": "ffffffffffff"}),
        "a lone surrogate": text[:-1] + ', "x": "\\ud800"}',
        "a pickle": b"\x80\x04\x95\x00",
        "a long number": '{"id": "%s", "schema": ' + "9" * 5000 + "}",
        "a measure": (
            '{"schema": 1, "id": "%s", "kind": "magnitude", "of": [], "settings": {}, "seeds": {},'
            ' "values": {}}'
        ),
    }

    def put(content: bytes | str, name: str) -> Callable[[Path], object]:
        raw = content if isinstance(content, bytes) else content.replace("%s", name).encode()
        return lambda place: place.write_bytes(raw)

    names = [f"{number:012x}" for number in range(0xA000, 0xA000 + len(texts))]
    return [
        Odd(f"{name}.json", what, put(content, name), True)
        for name, (what, content) in zip(names, texts.items(), strict=True)
    ]


def no_files(home: Home) -> list[Odd]:
    outside = home.file("outside.json", "{}")

    def sparse(place: Path) -> None:
        place.touch()
        os.truncate(place, 2**36)

    ways: dict[str, Callable[[Path], object]] = {
        "folder": lambda place: place.mkdir(),
        "pipe": os.mkfifo,
        "zero": lambda place: place.symlink_to("/dev/zero"),
        "terminal": lambda place: place.symlink_to("/dev/tty"),
        "loop": lambda place: place.symlink_to(place.name),
        "dangling": lambda place: place.symlink_to("nowhere"),
        "outside": lambda place: place.symlink_to(outside),
        "sparse": sparse,
        "new\nline": lambda place: place.write_text("{}"),
        "sp ace '$(touch x)": lambda place: place.write_text("{}"),
        os.fsdecode(b"\xff\xfe"): lambda place: place.write_text("{}"),
    }
    odds = [Odd(f"{name}.json", name, put, True) for name, put in ways.items()]
    # No records' names: left alone
    for name in (".a.json.HOST.99999999999999999999999.1", ".b.json.HOST.-1.1", "README.md"):
        odds.append(Odd(name, name, lambda place: place.write_text("x"), False))
    return odds


# --- the ledger


class Ledger:
    """Sound records with what the commands need of them, in folders that odd files are put beside."""

    def __init__(self, place: Path) -> None:
        self.place = place
        model, glue = save_tiny(place / "bert", "bert"), write_glue(place / "glue", {"train": 8, "dev": 8})
        words = [
            "model=encoder",
            f"model.path={model}",
            "task=rte",
            f"task.data_dir={glue}",
            "method.rank=4",
            "device=cpu",
        ]
        words += [
            "train.epochs=1",
            "train.effective_batch=8",
            "train.max_length=16",
            "train.lr=1e-2",
            "tracking=off",
        ]
        self.words = words
        self.own = do([word for word in words if word != "tracking=off"] + [f"output={place / 'sound'}"])
        published = [json.loads(path.read_text()) for path in sorted(STUDY.glob("*.json"))]
        cells = {
            (r["cell"]["row"], r["cell"]["seed"]): r
            for r in published
            if r["cell"]["task"] == "cola" and r["cell"]["paper"]
        }
        self.sound, self.odd = cells["vera", 0], cells["lora", 0]
        write = place / "sound" / "records" / f"{self.sound['id']}.json"
        write.write_text(json.dumps(self.sound))
        study = place / "studies" / "glue_minilm"
        study.mkdir(parents=True)
        (study / write.name).write_text(write.read_text())
        (study / "NOTES.md").write_text((STUDY / "NOTES.md").read_text())
        self.commands = [
            Command(
                "tables",
                "analysis.tables.__main__",
                lambda f: ["table2", "format=csv", f"output={f}"],
                True,
                self._tells("VeRA"),
            ),
            Command("stats", "analysis.stats", lambda f: [f"output={f}"], True, self._tells("VeRA")),
            Command("figures", "analysis.figures.__main__", lambda f: ["parameters", f"output={f}"], True),
            Command("report", "analysis.report", lambda f: [f"output={f}"], True, self._page),
            Command(
                "dashboard",
                "analysis.dashboard",
                lambda f: [f"json={f / 'd.json'}", f"output={f}"],
                False,
                self._dashboard,
            ),
            # A plan reads what it shows and a sample of the others, so it need not name them all.
            Command("plan", "runs.plan", lambda f: [*words, f"output={f}"], False, self._tells("1/1 done")),
            Command("publish", "runs.publish", lambda f: ["mine", f"output={f}"], False, self._published),
            Command(
                "evaluate",
                "runs.evaluate",
                lambda f: [self.own["id"], f"output={f}"],
                False,
                self._tells("the same"),
            ),
            Command(
                "export",
                "runs.export.__main__",
                lambda f: [self.own["id"], "peft", f"{f / 'out'}", f"output={f}"],
                False,
                self._exported,
            ),
            Command("results", "analysis.results.__main__", self._results, False, self._resulted, True),
        ]

    def _tells(self, words: str) -> Callable[[Path, str], bool]:
        return lambda folder, text: words in " ".join(text.split())

    def _page(self, folder: Path, text: str) -> bool:
        return self.sound["id"] in (folder / "report.html").read_text()

    def _dashboard(self, folder: Path, text: str) -> bool:
        return (folder / "d.json").stat().st_size > 1000

    def _published(self, folder: Path, text: str) -> bool:
        return (folder / "studies" / "mine" / f"{self.own['id']}.json").is_file()

    def _exported(self, folder: Path, text: str) -> bool:
        return (folder / "out" / "adapter_config.json").is_file()

    def _results(self, folder: Path) -> list[str]:
        (folder / "README.md").write_text((ROOT / "README.md").read_text())
        return [f"docs={folder / 'docs'}", f"readme={folder / 'README.md'}"]

    def _resulted(self, folder: Path, text: str) -> bool:
        return any("VeRA" in page.read_text() for page in (folder / "docs").rglob("*.md"))

    def folder(self, odds: Sequence[Odd], studies: bool) -> Path:
        """A copy of the sound folder, with odd files among its records, or among a published study's."""
        folder = self.place / f"{os.getpid()}"
        for name, target in (("sound", folder), ("studies", folder / "studies")):
            shutil.copytree(self.place / name, target)
        for odd in odds:
            odd.put((folder / "studies" / "glue_minilm" if studies else folder / "records") / odd.name)
        return folder

    def case(self, kind: str, command: Command, odds: Sequence[Odd]) -> Case:
        def halves() -> list[Case]:
            middle = len(odds) // 2
            return [self.case(kind, command, part) for part in (odds[:middle], odds[middle:])]

        name = command.name + (f" beside {odds[0].what!r}" if len(odds) == 1 else "")
        act = lambda: self.attack(command, odds)  # noqa: E731
        more = halves if len(odds) > 1 else None
        return Case(
            kind, name, act, "taken", len(odds) or 1, seconds=30, patience=40, megabytes=900, halves=more
        )

    def attack(self, command: Command, odds: Sequence[Odd]) -> None:
        folder = self.folder(odds, command.studies)
        code, text = self.call(command.module, command.words(folder), folder)
        if code not in (0, 1 if command.name == "plan" else 0):
            raise WrongError(f"exit code {code}: {' '.join(text.split())[-300:]}")
        if not command.shown(folder, text):
            raise WrongError(f"what is sound is not shown: {' '.join(text.split())[-300:]}")
        if found := HIDDEN.search(text.replace("\r", "")):
            raise WrongError(f"{found[0]!r} reaches the terminal")
        told = " ".join(text.split())
        names = {
            odd.what: " ".join(odd.name.encode("utf-8", "backslashreplace").decode().split())
            for odd in odds
            if odd.certain
        }
        lacking = [what for what, name in names.items() if command.lists and name not in told]
        if lacking:
            raise WrongError(f"{len(lacking)} odd files are not named: {', '.join(lacking[:5])}")

    def asked_for(self, name: str, odd: Odd) -> Case:
        """evaluate or export of the odd record itself."""
        command = next(c for c in self.commands if c.name == name)

        def act() -> None:
            folder = self.folder([odd], False)
            words = [
                odd.name.removesuffix(".json") if word == self.own["id"] else word
                for word in command.words(folder)
            ]
            code, text = self.call(command.module, words, folder)
            lines = text.strip().splitlines()
            if code == 2 and not (len(lines) >= 1 and lines[-1].startswith("error: ")):
                raise WrongError(f"exit code 2 without a line: {text[-300:]}")

        return Case(
            "an odd record asked for by its id",
            f"{name}, {odd.what}",
            act,
            "taken",
            seconds=60,
            megabytes=900,
        )

    def call(self, module: str, words: list[str], folder: Path) -> tuple[int, str]:
        """A command in this process, as a user starts it; with the studies of a folder for those of the
        project."""
        main, published = import_module(module).main, runs.record.PUBLISHED
        for name, room in list(sys.modules.items()):
            if name.startswith(("runs", "analysis")) and getattr(room, "PUBLISHED", None) == published:
                room.PUBLISHED = folder / "studies"  # type: ignore[attr-defined]
        sys.argv, text = [module, *words], io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            try:
                runs.command.entry_point(main)
            except SystemExit as ended:
                return int(ended.code or 0), text.getvalue()
        raise WrongError("the command did not end")
