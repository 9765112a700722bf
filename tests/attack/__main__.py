"""A campaign of files, words and requests from strangers: adapters, models, data, images, records, command
lines, and clients of the server.

    python -m attack [SEED] [--short]      make attack and make attack SHORT=1 do the same

What is tried stands in hostile.yaml, or is sound input, changed at random from a seed. What holds a case, and
what was tried, is written to docs/attack.md (page.md), but for a short campaign.
"""

import argparse
import datetime
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}

import torch
from attack import commands, files, serve
from attack.cases import Home, run
from transformers.utils import logging

ROOT = Path(__file__).parents[2]
#: With the share of their cases that a short campaign runs, but for sound ones.
PARTS = {files.cases: 0.3, commands.words: 0.5, commands.records: 1, serve.cases: 1}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m attack", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--short", action="store_true", help="a part of the cases, in three or four minutes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = Path(tempfile.mkdtemp(prefix="attack-"))
    os.environ["XDG_CACHE_HOME"] = str(path / "cache")
    home, started = Home(path, options.seed, options.short), time.monotonic()
    print(f"seed {options.seed}", flush=True)
    gc.freeze()  # what is there already: a child that looks at it would copy it
    rows, dice = dict[str, Counter[str]](), home.dice("short")
    for cases, share in PARTS.items():
        for case in cases(home):
            if home.short and dice.random() > share and "sound" not in case.kind:
                continue
            outcome, problems = run(case, home)
            for kind in (case.kind, "all"):
                found = {"tried": case.tried, outcome: case.tried, "problems": len(problems)}
                rows.setdefault(kind, Counter()).update(found)
            for words in problems:
                print(f"PROBLEM: {words}", flush=True)
        print(f"{time.monotonic() - started:4.0f} s  {rows['all']['tried']} tried", flush=True)
    shutil.rmtree(path, ignore_errors=True)
    print(f"{rows['all']['tried']} tried, {rows['all']['problems']} did not hold")
    if not options.short:
        (ROOT / "docs" / "attack.md").write_text(page_of(rows, options.seed, time.monotonic() - started))
    return bool(rows["all"]["problems"])


def page_of(rows: dict[str, Counter[str]], seed: int, seconds: float) -> str:
    """docs/attack.md: page.md with what was tried."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    tried, problems = (rows["all"][name] for name in ("tried", "problems"))
    where = f"{os.cpu_count()} CPU cores, commit {git.stdout.strip()}, seed {seed}"
    lines = []
    for kind in sorted(rows, key=lambda kind: kind == "all"):
        counts = (rows[kind][name] for name in ("tried", "refused", "taken", "problems"))
        lines.append(f"| {kind} | {' | '.join(f'{count:,}' for count in counts)} |")
    return (
        Path(__file__)
        .with_name("page.md")
        .read_text()
        .format(
            measured=f"{datetime.date.today()}, {where}: {tried:,} cases in {seconds / 60:.0f} minutes.",
            verdict=f"{problems:,} did not hold." if problems else f"All {tried:,} held.",
            table="\n".join(lines),
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
