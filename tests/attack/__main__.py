"""A campaign of files, words and requests from strangers: adapters, models, data,
images, records, command lines, and clients of the server.

    python -m attack [SEED] [--short] make attack and make attack SHORT=1 do the same

The cases are those of hostile.yaml and files.py, and sound input that is changed at
random from a seed. docs/attack.md says what holds a case. A campaign writes its counts
there, unless it is a short one."""

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import matplotlib.font_manager  # noqa: F401  before the cache is another: a list of fonts takes seconds
from attack import files
from attack.cases import HOSTILE, Case, run
from fastapi.testclient import TestClient
from ledgers import record
from running import ROOT, call_here, values_of
from support import table, write_adapter
from tiny import save_tiny, write_glue
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import vera
from runs.config import expand
from runs.record import ledger
from runs.record.ledger import PUBLISHED, write_record
from runs.record.text import is_hidden
from runs.run.identity import run_id
from runs.run.provenance import git_output

PAGE, COLUMNS = (
    ROOT / "docs" / "attack.md",
    ("cases", "refused", "taken", "did not hold"),
)
GOOD = json.dumps(
    {"adapter": "a0", "text": "the dog sees the cat .", "text_pair": "who ?"}
).encode()


def words(home: Path, share: float) -> Iterator[Case]:
    """Of the command line."""
    base, place = ["model=encoder", "task=rte", "method=vera"], home / "words"
    sound = [*base, "device=cpu", f"model.path={save_tiny(place / 'bert', 'bert')}"]
    sound += [f"task.data_dir={write_glue(place / 'glue')}"]

    def case(kind: str, more: list[str], expected: str) -> Case:
        act = lambda folder: [run_id(run) for run in expand([*sound, *more])]  # noqa: E731
        return Case(
            f"words of the command line, {kind}",
            " ".join(more)[:60],
            act,
            expected=expected,
        )

    yield case("sound", ["seed=0,1"], "taken")
    for word in [
        *HOSTILE["words"],
        "[" * 3000,
        "seed=" + "[" * 3000,
        *HOSTILE["harmless"],
    ]:
        yield case(
            "by hand", [word], "either" if word in HOSTILE["harmless"] else "refused"
        )
    keys = [line.partition("=")[0] for line in values_of(tuple(base))]
    for draw in range(int(250 * share)):
        more = [
            f"{random.choice(keys)}={random.choice(HOSTILE['odd_words'])}"
            for _ in range(1 + draw % 2)
        ]
        yield case("values at random", more, "either")


def records(home: Path, share: float) -> Iterator[Case]:
    """Each command beside odd records: sound ones that were changed at random, and by
    hand."""
    place, count = home / "records", int(1500 * share)
    (home / "studies").mkdir()
    (home / "studies" / "glue_minilm").symlink_to(PUBLISHED / "glue_minilm")
    write_record(place, record())
    text = json.dumps(record(row="lora", seed=1)).encode()
    changed = [
        files.to_json(files.value_changed(json.loads(text))) for _ in range(count)
    ]
    changed += [files.at_random(text, "") for _ in range(count // 10)]
    none = [odd.encode() for odd in HOSTILE["records"]]
    limits = {
        "expected": "taken",
        "seconds": 60,
        "megabytes": 900,
        "tried": len(changed + none),
    }
    for module in HOSTILE["commands"]:
        yield Case(
            "records of others",
            module,
            partial(beside, home, module, changed, none),
            **limits,
        )


def beside(
    home: Path, module: str, changed: list[bytes], none: list[bytes], folder: Path
) -> None:
    """A command beside odd files and one published study. none: these are certainly no
    records, and each has to be named."""
    ledger.PUBLISHED = home / "studies"
    odd_files = {f"{i:012x}.json": odd for i, odd in enumerate([*none, *changed])}
    shutil.copytree(home / "records", folder, dirs_exist_ok=True)
    for file, odd in odd_files.items():
        (folder / "records" / file).write_bytes(odd)
    command = HOSTILE["commands"][module]
    done = call_here(module, *command["words"].format(f=folder).split(), check=0)
    text = done.stdout + done.stderr
    shown = (folder / command["file"]).read_text() if "file" in command else text
    assert command["shown"] in shown, "the sound records are not shown"
    assert not any(map(is_hidden, text.replace("\r", ""))), (
        "a control character reaches the terminal"
    )
    missing = [
        odd[:80] for file, odd in [*odd_files.items()][: len(none)] if file not in text
    ]
    assert not missing or "file" in command, f"not named: {missing}"


def requests(home: Path, share: float) -> Iterator[Case]:
    """Of clients of examples/serve.py."""
    place = home / "server"
    base = AutoModelForSequenceClassification.from_pretrained(
        save_tiny(place / "model", "bert")
    )
    write_adapter(base, vera.VeRA(rank=4), place / "a0")
    bodies = [body.encode("latin-1") for body in files.repeated(HOSTILE["bodies"])]
    names = [
        json.dumps({"adapter": name, "text": "a"}).encode()
        for name in files.repeated(HOSTILE["names"])
    ]
    changed = [files.at_random(GOOD, "") for _ in range(int(150 * share))]
    for kind, sent, codes in (
        ("bodies that are no question", bodies, [400, 422]),
        ("adapters that are not there", names, [404, 422]),
        ("bodies with bytes changed at random", changed, [200, 400, 404, 422]),
    ):
        limits = {"seconds": 60, "megabytes": 900, "network": True, "tried": len(sent)}
        act = partial(ask, place, base, sent, codes)
        yield Case(
            f"server, {kind}", "examples/serve.py", act, expected="taken", **limits
        )


def ask(
    place: Path, base: Any, sent: list[bytes], codes: list[int], folder: Path
) -> None:
    """Each body is answered with one of the codes; and after it a good request as
    before."""
    sys.path.insert(0, str(ROOT / "examples"))  # As Python does for a script
    example = runpy.run_path(str(ROOT / "examples" / "serve.py"))
    registry = example["Registry"](base, True)
    registry.add("a0", place / "a0")
    app = example["build"](registry, AutoTokenizer.from_pretrained(place / "model"))
    with TestClient(app, headers={"content-type": "application/json"}) as client:
        good = client.post("/classify", content=GOOD)
        assert good.status_code == 200, good.text
        for content in sent:
            status = client.post("/classify", content=content).status_code
            assert status in codes, f"{content[:100]!r} is answered {status}"
            again = client.post("/classify", content=GOOD)
            assert again.content == good.content, (
                f"after {content[:100]!r} the next answer is another"
            )
            assert again.elapsed.total_seconds() < 5, (
                f"after {content[:100]!r} the next answer is slow"
            )


# --- the campaign

#: All cases. The workers, which are forked later, have them, too.
CASES: list[Case] = []


def outcome_of(number: int, home: Path) -> tuple[int, str, list[str]]:
    return number, *run(CASES[number], home)


def campaign(home: Path, share: float) -> dict[str, Counter[str]]:
    """Runs all cases, as many at once as there are cores, the long ones first. The
    counts of each kind."""
    CASES.extend(
        chain(*(part(home, share) for part in (files.cases, words, records, requests)))
    )
    rows = {case.kind: Counter[str]() for case in CASES}
    order = sorted(range(len(CASES)), key=lambda number: -CASES[number].seconds)
    gc.freeze()  # what is there already: a child that looks at it would copy it
    with multiprocessing.get_context("fork").Pool() as pool:
        for number, outcome, problems in pool.imap_unordered(
            partial(outcome_of, home=home), order
        ):
            case = CASES[number]
            rows[case.kind].update(
                {
                    "cases": case.tried,
                    outcome: case.tried,
                    "did not hold": len(problems),
                }
            )
            for problem in problems:
                print(f"PROBLEM: {problem}", flush=True)
    return rows | {"all": sum(rows.values(), Counter[str]())}


def write_page(rows: dict[str, Counter[str]], seed: int, seconds: float) -> None:
    """The counts, at the end of docs/attack.md."""
    where = f"{os.cpu_count()} CPU cores, commit {git_output('describe', '--always', '--dirty')}, seed {seed}"
    tried, problems = rows["all"]["cases"], rows["all"]["did not hold"]
    text = f"Measured on {datetime.date.today()}, {where}: {tried:,} cases in {seconds / 60:.0f} minutes. "
    text += f"{problems:,} did not hold." if problems else f"All {tried:,} held."
    counts = [
        [kind, *(f"{of[name]:,}" for name in COLUMNS)] for kind, of in rows.items()
    ]
    lines = table(["what was tried", *COLUMNS], counts)
    PAGE.write_text(
        "\n".join(
            [PAGE.read_text().partition("Measured on ")[0] + text, "", *lines, ""]
        )
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m attack", description=__doc__)
    parser.add_argument(
        "seed", nargs="?", type=int, default=random.SystemRandom().randrange(10**6)
    )
    parser.add_argument(
        "--short", action="store_true", help="a twentieth of the random cases"
    )
    options, began = parser.parse_args(arguments), time.monotonic()
    random.seed(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="attack-") as path:
        os.environ["XDG_CACHE_HOME"] = f"{path}/cache"
        rows = campaign(Path(path), 0.05 if options.short else 1)
    print(f"{rows['all']['cases']} tried, {rows['all']['did not hold']} did not hold")
    if not options.short:
        write_page(rows, options.seed, time.monotonic() - began)
    return bool(rows["all"]["did not hold"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
