"""A campaign of files, words and requests from strangers: what a record, an adapter, a model's folder, data,
images, a command line, a client of the server or a label in the report may hold that nobody meant.

    python -m attack [SEED] [--short] [--part PART]      make attack and make attack SHORT=1 do the same

Some of it is made by hand, much of it at random, from a seed. Each case is done in a child of its own, forked
from one warmed process: it has to be refused in one line or taken, without a traceback, in seconds, in little
memory, and no program or code of a stranger's may run. What was tried and what held stands in docs/attack.md.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import torch
from transformers.utils import logging

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> int:
    from attack import adapters, data, models, page, records, serve, sweep, words
    from attack.cases import Home, run, thinned
    from attack.report import Part, text_of

    parts = [
        Part("records", "Records", records.cases),
        Part("sweep", "What stands in the way of a sweep", sweep.cases),
        Part("adapters", "Adapter files", adapters.cases, share=0.35),
        Part("models", "Model folders", models.cases, share=0.35),
        Part("data", "Data, texts and images", data.cases, share=0.35),
        Part("words", "Words of the command line, and make", words.cases, share=0.5),
        Part("serve", "The server", serve.cases, 1, 0.5),
        Part("page", "The report in a browser", page.cases),
    ]
    parser = argparse.ArgumentParser(prog="python -m attack", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--short", action="store_true", help="a part of the cases, in two or three minutes")
    parser.add_argument(
        "--part", action="append", choices=[part.name for part in parts], help="this part alone; no page"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = Path(tempfile.mkdtemp(prefix="attack-"))
    os.environ["XDG_CACHE_HOME"] = str(path / "cache")
    home, started = Home(path, options.seed, options.short), time.monotonic()
    print(f"seed {options.seed}", flush=True)
    for part in parts:
        if not options.part or part.name in options.part:
            since = time.monotonic()
            cases = part.cases(home)
            if options.short:
                cases = thinned(cases, home.dice("short"), part.share)
            part.rows = run(cases, home, part.workers, lambda words: print(words[:500], flush=True))
            part.seconds = time.monotonic() - since
            print(f"{time.monotonic() - started:4.0f} s  {part.summary()}", flush=True)
    problems = sum(len(part.problems) for part in parts)
    text = text_of(parts, options.seed, time.monotonic() - started)
    if not (options.part or options.short):
        (ROOT / "docs" / "attack.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    used = sum(os.times()[:4])
    print(f"{used:.0f} s of the processor")
    print(
        f"{sum(part.tried for part in parts)} tried, {problems} did not hold"
        + (f", see {path}" if problems else "")
    )
    if not problems:
        shutil.rmtree(path)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
