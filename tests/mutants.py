"""Mutants: small mistakes in the code, each of which some test should catch.

    PYTHONPATH=.:tests python tests/mutants.py [FOLDER]    tries those without a result in outputs/mutants
    PYTHONPATH=.:tests python tests/mutants.py keep        writes the results into tests/nets/mutants.jsonl

tests/nets/mutants.jsonl holds them: file, function, the line before and after, and of the pass that a later
one is compared with the result and the test that caught it, which the later one tries first. What was caught
then and is not any more ends it with exit code 1. 300 were drawn, by chance, of all rooms; one whose line is
gone is passed over, and a further line adds one. They are tried in a clone of the last commit. FOLDER keeps
map.coverage and map.times (which fast tests reach which line, and how long they take; delete them after any
change) and results.jsonl (for a new pass, too).
"""

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
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "nets" / "mutants.jsonl"
#: Of a mutant: seconds at most, those of its tests as they took without it, and cases of each test; first,
#: and for what that misses.
TRIES = (45, 20.0, 3), (150, 90.0, 99)
BAD, KEYS, KEPT = ("missed", "unreached"), ("file", "function", "nth", "before", "after"), ("result", "by")
#: What each try would import anew, for longer than its tests take.
PRELOADED = ["torch", "transformers", "peft", "timm", "datasets", "pandas", "hydra", "scipy.stats", "pytest"]
FORKS = multiprocessing.get_context("forkserver")


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []


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
    of, lines = dict(functions(ast.parse(text))).get(mutant["function"]), text.splitlines()
    places = [i for i in range(of.lineno - 1, of.end_lineno) if lines[i] == mutant["before"]] if of else []
    if len(places) <= mutant["nth"]:
        return None
    lines[places[mutant["nth"]]] = mutant["after"]
    return "\n".join([*lines, ""])


# --- which tests reach which function


def tests_of(clone, path):
    """The tests that reach each function, each with its seconds, the fastest first; from one run of all that
    are fast, with their coverage in path and their times beside it."""
    times = path.with_suffix(".times")
    if not times.is_file():
        rooms = [f"--cov={room}" for room in ("vera", "tasks", "runs", "analysis")]
        words = [*rooms, "--cov-context=test", "--cov-report=", "-n", "auto"]
        code, output = call(
            clone, ["-m", "not slow", "--durations=0", *words], COVERAGE_FILE=str(path.absolute())
        )
        if code:
            sys.exit(f"error: tests fail without a mutant:\n{output}")
        times.write_text(output)
    seconds = defaultdict(float)
    for took, test in re.findall(r"^([0-9.]+)s (?:setup|call|teardown) +(\S.*)$", times.read_text(), re.M):
        seconds[test] += float(took)
    data, there = CoverageData(str(path)), {*call(clone, ["--collect-only"])[1].splitlines()}
    data.read()
    reaching, mutated_files = defaultdict(list), {one["file"] for one in read(DATA)}
    for file in data.measured_files():
        name = file[file.index("/clone/") + len("/clone/") :]
        lines = data.contexts_by_lineno(file)
        if name in mutated_files:
            for function, of in functions(ast.parse((clone / name).read_text())):
                of_lines = (lines.get(i, ()) for i in range(of.body[0].lineno, of.end_lineno + 1))
                tests = {one.rpartition("|")[0] for one in chain.from_iterable(of_lines) if one} & there
                reaching[f"{name}:{function}"] = sorted((seconds[test], test) for test in tests)
    return reaching


# --- trying


def run(folder):
    """Tries what has no result yet, first what the last pass caught. Returns how many are missed that were
    caught before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    done = set(map(key, read(path)))
    with tempfile.TemporaryDirectory() as temporary:
        clones = queue.SimpleQueue()
        for number in range(os.cpu_count()):
            clones.put(clone := Path(temporary) / str(number) / "clone")
            subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(clone)], check=True)
        reaching = tests_of(clone, folder / "map.coverage")

        def one(mutant):
            found, clone = None, clones.get()
            if mutant.get("by"):
                found = tried(mutant, [mutant["by"]], clone, TRIES[0][0])
            tests = reaching[f"{mutant['file']}:{mutant['function']}"]
            for limit, *most in TRIES:
                if (not found or found["result"] in BAD) and (some := chosen(tests, *most)):
                    tests = [one for one in tests if one[1] not in some]
                    found = tried(mutant, some, clone, limit)
            found = found or {"result": "unreached", "by": "", "of": 0}
            clones.put(clone)
            write(path, [dict(zip(KEYS, key(mutant), strict=True)) | found], "a")
            print(f"{found['result']:10}{mutant['file']}:{mutant['function']}", flush=True)

        todo = [mutant for mutant in read(DATA) if key(mutant) not in done]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, sorted(todo, key=lambda one: not one.get("by"))))
    before, results = {key(one): one.get("result") for one in read(DATA)}, read(path)
    print(dict(Counter(one["result"] for one in results)))
    lost = [one for one in results if one["result"] in BAD and before.get(key(one)) in ("caught", "late")]
    for one in lost:
        print(f"caught before, and not now: {one['file']}:{one['function']}: {one['after'].strip()}")
    return len(lost)


def chosen(tests, testing, most):
    """So many cases of each test at most, the nets and then the fastest first: up to so many seconds."""
    kept, cases, seconds = [], Counter(), 0.0
    for took, test in sorted(tests, key=lambda one: ("/nets/" not in one[1], one)):
        name = test.partition("[")[0]
        if cases[name] < most and (not kept or seconds + took <= testing):
            cases[name] += 1
            seconds += took
            kept.append((took, test))
    return [test for _, test in sorted(kept)]


def tried(mutant, tests, clone, seconds):
    """What the tests say within these seconds: caught, missed or late; gone where the code is."""
    path, text = clone / mutant["file"], mutated(mutant, clone)
    if text is None:
        return {"result": "gone", "by": "", "of": len(tests)}
    before = path.read_text()
    path.write_text(text)
    try:
        code, output = call(clone, ["-x", "--tb=no", "-rfE", *tests], seconds)
    finally:
        path.write_text(before)
    by = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - |$)", output, re.M)
    return {
        "result": {None: "late", 0: "missed"}.get(code, "caught"),  # 4: a file of tests cannot be imported
        "by": by[1] if by else "",
        "of": len(tests),
    }


def call(clone, words, seconds=0, **more):
    """pytest's exit code in the clone, None where it took more seconds of a processor (0: no limit), which
    other work on the machine does not change, or six times as many by the clock; and its output."""
    with tempfile.NamedTemporaryFile() as output:
        process = FORKS.Process(target=_pytest, args=(clone, words, seconds, more, output.name))
        process.start()
        process.join(6 * seconds or None)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and all that the tests have started
        process.join()
        code = None if process.exitcode in (-signal.SIGKILL, -signal.SIGXCPU) else process.exitcode
        return code, Path(output.name).read_text(errors="replace")


def _pytest(clone, words, seconds, more, output):
    """In a process that is forked from one with PRELOADED, and without the clone's own modules."""
    os.setsid()
    with Path(output).open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    sys.dont_write_bytecode = True
    setting = {"PYTHONPATH": ".:tests", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= setting | more
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
        kept = [one | {part: results.get(key(one), {}).get(part) for part in KEPT} for one in read(DATA)]
        write(DATA, kept)
    else:
        sys.exit(bool(run(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
