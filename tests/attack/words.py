"""Words of the command line, and variables of make, from strangers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from running import values_of
from tiny import save_tiny, write_glue

from attack.cases import Case, Home, WrongError
from runs.config import expand
from runs.identity import run_id

ROOT = Path(__file__).parents[2]
BASE = ["model=encoder", "task=rte", "method=vera"]
#: Refused, each of them.
WORDS = [
    *(
        "task.family=../../evil",
        "task.family=metrics.accuracy",
        "task.family=os",
        "task.family=",
        "task=../task/rte",
    ),
    *(
        "method.rank=choice(1,2),3",
        "train.lr=glob(*)",
        "seed=range(0,10000000)",
        "seed=range(0,inf)",
        "seed=range(0,nan)",
    ),
    *(
        "train.lr=range(0,1,0)",
        "seed=shuffle(range(0,10000000000))",
        "hydra.searchpath=[file:///tmp]",
        "hydra.run.dir=/tmp/x",
    ),
    *(
        "hydra/launcher=basic",
        "hydra.launcher._target_=os.system",
        "hydra.launcher={_target_:os.system}",
        "hydra={a:1}",
    ),
    *(
        "++method._target_=os.system",
        "+method._target_=os.system",
        "model.settings={a:[{_target_:os.system}]}",
        "~method",
    ),
    *(
        "model.settings={a:1},{b:{_target_:x}}",
        "method.rank=",
        "=1",
        "seed",
        "--config-dir=/nowhere/at/all",
        "--config-path=/etc",
        "-cd",
    ),
    *(
        "seed=-1",
        "seed=1.5",
        "seed=x",
        "seed=99999999999999999999999",
        "seed=[1]",
        "seed=null",
        "train.lr=nan",
        "train.lr=inf",
    ),
    *(
        "train.lr=-1",
        "train.epochs=0",
        "train.epochs=1.5",
        "train.epochs=x",
        "train.effective_batch=0",
        "micro_batch=-1",
    ),
    *("model=../../etc/passwd", "method=nobody", "recipe.lr=1", "config_hash=x", "method.kind={a: 1}"),
    *(
        "train.schedule=x",
        "keep=x",
        "device=x",
        "select=x",
        "train.precision=fp8",
        "[" * 3000,
        "a.b.c=1",
        "model.name.x=1",
    ),
    *(
        "seed=" + "[" * 3000,
        "seed=" + "9" * 6000,
        "train.lr=1e999",
        "seed=0;touch x",
        "method=${oc.env:HOME}",
        "seed=${seed}",
    ),
    *("model.path=${hydra:runtime.cwd", "task.label=${", "method.rank=${eval:1+1}"),
]
#: In a value, taken as they are or refused.
ODD = [
    "null",
    "-1",
    "0",
    "1e999",
    "nan",
    "x",
    "''",
    "[]",
    "{}",
    "[[[]]]",
    "{a:{b:1}}",
    "true",
    "../../x",
    "${seed}",
    "é",
    "9" * 50,
]
VARIABLES = [
    "SEEDS",
    "METHODS",
    "TASKS",
    "MODEL",
    "MODEL_PATH",
    "DATA",
    "OUTPUT",
    "EXPERIMENT",
    "LAUNCHER",
    "TRACKING",
    "ARGS",
]
TARGETS = {
    "demo": VARIABLES,
    "plan": VARIABLES,
    "ablations": VARIABLES,
    "tune": ["GRID", "SEEDS"],
    "publish": ["STUDY"],
}
TARGETS |= {
    "dashboard": ["ENTITY", "PROJECT", "JSON"],
    "bench": ["DATA", "FULL"],
    "chaos": ["N", "SEED"],
    "attack": ["SEED", "SHORT"],
}
TARGETS |= {"llama-7b": ["JUDGE", "MT_BENCH"], "report": ["OUTPUT"], "figures": ["OUTPUT"]}


def cases(home: Home) -> Iterator[Case]:
    sound = [
        *BASE,
        "device=cpu",
        f"model.path={save_tiny(home.place(), 'bert')}",
        f"task.data_dir={write_glue(home.place())}",
    ]
    yield _words("sound words", [*sound, "seed=0,1"], "taken")
    for word in WORDS:
        yield _words("words made by hand", [*sound, word], "refused")
    for word in (
        "method.label=$(touch x)",
        "output='a b'",
        "method.label='=1+1'",
        "model.path=/etc/passwd",
        "--config-dir=/etc",
    ):
        yield _words("words made by hand", [*sound, word], "either")
    dice, keys = home.dice("words"), [line.partition("=")[0] for line in values_of(tuple(BASE))]
    for _ in range(40 if home.short else 250):
        words = [f"{dice.choice(keys)}={dice.choice(ODD)}" for _ in range(dice.choice([1, 1, 2]))]
        yield _words("values at random", [*sound, *words], "either")
    evil = [
        f"0; {home.shell}",
        f"$(shell {home.shell})",
        f"`{home.shell}`",
        f"$$({home.shell})",
        f"a' b\"; {home.shell} #",
    ]
    evil += [
        f"a\n{home.shell}",
        f"| {home.shell}",
        f"$({home.shell})",
        f"'$(shell {home.shell})'",
        f"\\; {home.shell}",
    ]
    every = [(target, name, value) for target, names in TARGETS.items() for name in names for value in evil]
    for target, name, value in home.some("make", every, 40):
        yield _make(home, target, name, value)


def _words(kind: str, words: list[str], expected: str) -> Case:
    def act() -> None:
        for run in expand(words):
            run_id(run)

    return Case(kind, " ".join(words[5:])[:60], act, expected)


def _make(home: Home, target: str, name: str, value: str) -> Case:
    folder = home.place()

    def act() -> None:
        (folder / ".venv" / "bin").mkdir(parents=True)
        for file in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / file, folder)
        (folder / ".venv" / ".installed").touch()
        python = folder / ".venv" / "bin" / "python"
        program = (
            "import json, os, sys\nif sys.argv[1] == '-c':\n    os.execv(sys.executable, [sys.executable,"
            " *sys.argv[1:]])\n"
        )
        python.write_text(
            f"#!{sys.executable}\n{program}open('calls', 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        )
        python.chmod(0o755)
        done = subprocess.run(
            ["make", target, f"{name}={value}"], cwd=folder, capture_output=True, text=True, timeout=60
        )
        calls = (
            [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
            if (folder / "calls").exists()
            else []
        )
        pieces = [word for call in calls for word in call if "canary" in word]
        whole = value.replace("\n", " ")
        if done.returncode or (name != "ARGS" and any(whole not in piece for piece in pieces)):
            raise WrongError(
                f"exit code {done.returncode}, and the words were {pieces!r:.200}: {done.stderr[:200]}"
            )

    return Case("variables of make", f"{target} {name}={value!r:.40}", act, "taken", folder=folder)
