"""A fault campaign: kills at random moments of sweeps of tiny runs, and what else goes
wrong with machines.

    python -m chaos [N] [SEED] [--launcher=local|ray|slurm]
    make chaos N=100 SEED=1 LAUNCHER=ray does the same

First each sweep runs undisturbed. Then, in other folders, commands for the same runs
are started again and again. While a run is on, the run, the server that it was forked
from, its worker, the command, or all of them are killed, and between commands files are
damaged. At the end undisturbed commands have to finish each folder with exit code 0.
Records, adapters and texts then have to equal those of the undisturbed sweep, and
nothing else may be left.

A campaign stores its counts in docs/chaos, and writes docs/chaos.md from all that are
there. Kills at each single write of a run, and two processes in one run that no lock
keeps apart, are in tests/runs/test_attempt.py."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos.campaign import Campaign, missed_phases
from chaos.grounds import GROUNDS
from chaos.page import counts_of, save, section, write_page

from runs.command.errors import UserError


def main(arguments: list[str]) -> int:
    """Runs a campaign. Returns the exit code: 1 where something did not hold, and 2 where
    the launcher cannot work here."""
    parser = argparse.ArgumentParser(prog="python -m chaos")
    parser.add_argument("number", nargs="?", type=int, default=100)
    parser.add_argument("seed", nargs="?", type=int, default=random.randrange(10**6))
    parser.add_argument("--launcher", choices=[*GROUNDS], default="local")
    parser.add_argument("--no-page", action="store_true", help="write nothing")
    settings = parser.parse_args(arguments)
    started = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(
        f"{settings.number} kills, seed {settings.seed}, launcher "
        f"{settings.launcher}, in {home}",
        flush=True,
    )
    campaign = Campaign(home, settings.launcher, settings.number, settings.seed)
    try:
        campaign.go()
    except UserError as error:
        shutil.rmtree(home, ignore_errors=True)
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = counts_of(campaign, settings.seed, time.monotonic() - started)
    print(section(settings.launcher, [counts]))
    missed = missed_phases(campaign.kills)
    if missed:
        print(f"not reached: {', '.join(missed)}")
    if not settings.no_page:
        print(f"The counts: {save(counts)}")
        write_page()
    if counts.problems:
        print(f"What is left of the campaign: {home}")
    else:
        shutil.rmtree(home, ignore_errors=True)
    return int(bool(counts.problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
