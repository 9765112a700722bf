"""Mutants: small mistakes in the code, each of which some test should catch.

    PYTHONPATH=.:tests python tests/mutants.py [FOLDER] tries those without a result in
    outputs/mutants PYTHONPATH=.:tests python tests/mutants.py keep writes the results
    into tests/nets/mutants.jsonl

tests/nets/mutants.jsonl holds them: file, function, the line before and after, and of
the pass that a later one is compared with the result and the test that caught it, which
the later one tries first. What was caught then and is not any more ends it with exit
code 1. 300 were drawn, by chance, of all rooms; one whose line is gone is passed over,
and a further line adds one. They are tried in a clone of the last commit. FOLDER keeps
results.jsonl (delete it for a new pass)."""

import ast
import json
import multiprocessing
import os
import queue
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "nets" / "mutants.jsonl"
KEYS, KEPT = ("file", "function", "nth", "before", "after"), ("result", "by")
#: What each try would import anew, for longer than its tests take.
PRELOADED = [
    "torch",
    "transformers",
    "peft",
    "timm",
    "datasets",
    "pandas",
    "hydra",
    "scipy.stats",
    "pytest",
]
FORKS = multiprocessing.get_context("forkserver")


def read(path):
    return (
        [json.loads(text) for text in path.read_text().splitlines()]
        if path.is_file()
        else []
    )


def write(path, lines, mode="w"):
    with path.open(mode) as file:
        file.writelines(f"{json.dumps(one, ensure_ascii=False)}\n" for one in lines)


def key(mutant):
    return tuple(mutant[part] for part in KEYS)


def functions(node, name=""):
    """Every function below a node, with its name in full."""
    for one in ast.iter_child_nodes(node):
        is_named = isinstance(one, ast.FunctionDef | ast.ClassDef)
        inner = f"{name}.{one.name}".strip(".") if is_named else name
        if isinstance(one, ast.FunctionDef):
            yield inner, one
        yield from functions(one, inner)


def mutated(mutant, root):
    """The text of a file with the mutant in it; None where its code is gone."""
    path = root / mutant["file"]
    text = path.read_text() if path.is_file() else ""
    of, lines = (
        dict(functions(ast.parse(text))).get(mutant["function"]),
        text.splitlines(),
    )
    places = (
        [i for i in range(of.lineno - 1, of.end_lineno) if lines[i] == mutant["before"]]
        if of
        else []
    )
    if len(places) <= mutant["nth"]:
        return None
    lines[places[mutant["nth"]]] = mutant["after"]
    return "\n".join([*lines, ""])


# --- trying


def run(folder):
    """Tries what has no result yet. Returns how many are missed that were caught
    before."""
    folder.mkdir(parents=True, exist_ok=True)
    path, clones = folder / "results.jsonl", queue.SimpleQueue()
    done = set(map(key, read(path)))
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(os.cpu_count()):
            clones.put(clone := Path(temporary) / str(number))
            subprocess.run(
                ["git", "clone", "-q", "--shared", str(ROOT), str(clone)], check=True
            )

        def one(mutant):
            clone = clones.get()
            found = tried(mutant, clone)
            clones.put(clone)
            write(path, [dict(zip(KEYS, key(mutant), strict=True)) | found], "a")
            print(
                f"{found['result']:10}{mutant['file']}:{mutant['function']}", flush=True
            )

        todo = [mutant for mutant in read(DATA) if key(mutant) not in done]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, sorted(todo, key=lambda one: not one.get("by"))))
    before, results = {key(one): one.get("result") for one in read(DATA)}, read(path)
    print(dict(Counter(one["result"] for one in results)))
    lost = [
        one
        for one in results
        if one["result"] == "missed" and before.get(key(one)) in ("caught", "late")
    ]
    for one in lost:
        print(
            f"caught before, and not now: {one['file']}:{one['function']}: {one['after'].strip()}"
        )
    return len(lost)


def tried(mutant, clone):
    """What the tests say: caught, and by which; missed; late, where they take longer
    than is given; gone, where the code is. First the test that caught it before, then
    its room's fast ones and the nets."""
    path, text = clone / mutant["file"], mutated(mutant, clone)
    if text is None:
        return {"result": "gone", "by": ""}
    room = f"tests/{mutant['file'].partition('/')[0]}"
    code, by, before = 0, None, path.read_text()
    path.write_text(text)
    try:
        for tests, seconds in (
            ([mutant.get("by")], 45),
            (["-m", "not slow", room, "tests/nets"], 300),
        ):
            # 4: no such test, or its file cannot be imported
            if code in (0, 4) and tests[0]:
                code, output = call(clone, ["-x", "--tb=no", "-rfE", *tests], seconds)
                by = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - |$)", output, re.M)
    finally:
        path.write_text(before)
    return {
        "result": {None: "late", 0: "missed"}.get(code, "caught"),
        "by": by[1] if by else "",
    }


def call(clone, words, seconds):
    """pytest's exit code in the clone, None where it took more seconds of a processor,
    which other work on the machine does not change, or six times as many by the clock;
    and its output."""
    with tempfile.NamedTemporaryFile() as output:
        process = FORKS.Process(
            target=_pytest, args=(clone, words, seconds, output.name)
        )
        process.start()
        process.join(6 * seconds)
        with suppress(ProcessLookupError):
            # and all that the tests have started
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        code = (
            None
            if process.exitcode in (-signal.SIGKILL, -signal.SIGXCPU)
            else process.exitcode
        )
        return code, Path(output.name).read_text(errors="replace")


def _pytest(clone, words, seconds, output):
    """In a process that is forked from one with PRELOADED, and without the clone's own
    modules."""
    os.setsid()
    with Path(output).open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    sys.dont_write_bytecode = True
    os.environ |= {
        "PYTHONPATH": ".:tests",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    os.chdir(clone)
    sys.path[:0] = [str(clone), str(clone / "tests")]
    import pytest

    code = pytest.main(["-p", "no:cacheprovider", *words])
    sys.stdout.flush()
    os._exit(code)


def main(words):
    FORKS.set_forkserver_preload(PRELOADED)
    folder = Path(next((word for word in words if word != "keep"), "outputs/mutants"))
    if "keep" in words:
        results = {key(one): one for one in read(folder / "results.jsonl")}
        kept = [
            one | {part: results.get(key(one), {}).get(part) for part in KEPT}
            for one in read(DATA)
        ]
        write(DATA, kept)
    else:
        sys.exit(bool(run(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
