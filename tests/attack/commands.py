"""Words of the command line, and records of others with the commands that read them."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack.cases import HOSTILE, Case, Home, WrongError
from attack.files import at_random, value_changed
from ledgers import record
from running import call_here, values_of
from tiny import save_tiny, write_glue

from runs.config import expand
from runs.identity import run_id
from runs.record import HIDDEN, PUBLISHED, ledger, write_record


def words(home: Home) -> Iterator[Case]:
    base, place = ["model=encoder", "task=rte", "method=vera"], home.folder("words")
    sound = [*base, "device=cpu", f"model.path={save_tiny(place / 'bert', 'bert')}"]
    sound += [f"task.data_dir={write_glue(place / 'glue')}"]

    def case(kind: str, more: list[str], expected: str) -> Case:
        act = lambda folder: [run_id(run) for run in expand([*sound, *more])]  # noqa: E731
        return Case(f"words of the command line, {kind}", " ".join(more)[:60], act, expected=expected)

    yield case("sound", ["seed=0,1"], "taken")
    for word in [*HOSTILE["words"], "[" * 3000, "seed=" + "[" * 3000, *HOSTILE["harmless"]]:
        yield case("by hand", [word], "either" if word in HOSTILE["harmless"] else "refused")
    dice, keys = home.dice("words"), [line.partition("=")[0] for line in values_of(tuple(base))]
    for draw in range(250):
        more = [f"{dice.choice(keys)}={dice.choice(HOSTILE['odd_words'])}" for _ in range(1 + draw % 2)]
        yield case("values at random", more, "either")


def records(home: Home) -> Iterator[Case]:
    """Each command beside each kind of odd records."""
    place, dice, count = home.folder("records"), home.dice("records"), 90 if home.short else 1500
    (home.folder("studies") / "glue_minilm").symlink_to(PUBLISHED / "glue_minilm")
    write_record(place, record())
    text = json.dumps(record(row="lora", seed=1)).encode()
    kinds: dict[str, list[bytes]] = {
        "sound": [],
        "values changed at random": [value_changed(json.loads(text), dice) for _ in range(count)],
        "bytes changed at random": [at_random(text, "", dice) for _ in range(count // 10)],
        "by hand": [odd.encode() for odd in HOSTILE["records"]],
    }
    for kind, odds in kinds.items():
        for module in HOSTILE["commands"]:
            act = partial(beside, home, module, odds, kind == "by hand")
            limits = {"expected": "taken", "seconds": 60, "megabytes": 900, "tried": len(odds) or 1}
            yield Case(f"records of others, {kind}", module, act, **limits)


def beside(home: Home, module: str, odds: list[bytes], none: bool, place: Path, first: int = 0) -> None:
    """A command beside odd files and one published study; where it fails, beside each half of them, to say on
    which. none: they are certainly no records, and each has to be named."""
    ledger.PUBLISHED = home.folder("studies")
    folder, files = place / f"{first}-{len(odds)}", [f"{first + i:012x}.json" for i in range(len(odds))]
    shutil.copytree(home.folder("records"), folder)
    for file, odd in zip(files, odds, strict=True):
        (folder / "records" / file).write_bytes(odd)
    command = HOSTILE["commands"][module]
    try:
        done = call_here(module, *command["words"].format(f=folder).split(), check=0)
        text = done.stdout + done.stderr
        assert command["shown"] in ((folder / command["file"]).read_text() if "file" in command else text), (
            "not shown"
        )
        assert not HIDDEN.search(text.replace("\r", "")), "a control character reaches the terminal"
        assert not none or "file" in command or all(file in text for file in files), "not named"
    except AssertionError as error:
        middle = len(odds) // 2
        for half in ((0, middle), (middle, len(odds))) if middle else ():
            beside(home, module, odds[slice(*half)], none, place, first + half[0])
        raise WrongError(f"{f'{error}'[-300:]} beside {(odds or [b''])[0][:150]!r}") from None
