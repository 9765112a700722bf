"""What the campaign counts, and the page that it writes."""

import datetime
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from attack.cases import MEGABYTES, SECONDS, Case, Home, Row

INTRODUCTION = """# Hostile input

`make attack` (tests/attack) gives the harness files, command lines and requests that it was not written for.
`SEED=` draws other cases; `SHORT=1` runs a part of them in two or three minutes. Some cases are made by hand.
The others are sound input, changed at random. Each case runs in a watched process of its own.
"""
HELD = f"""A case holds if

- the input is refused in one line, or taken because it is sound or harmless;
- there is no traceback;
- it needs at most {SECONDS:g} seconds of the processor and {MEGABYTES:g} MB, or what its kind needs;
- it starts no program and asks for no address that the project does not ask for itself;
- code in the input, which would leave a file behind, does not run;
- of an adapter: the base weights keep their fingerprint, and a refused file leaves the model unchanged;
- of a ledger: each command succeeds, names the odd files, and shows the sound records.
"""
#: What no case tries, for the page.
NOT_COVERED = """## Not covered

- Other users of the same machine: whoever can write into the project's folder, its outputs or its cache can
  change anything.
- What a GPU does: 4-bit models, kernels, memory of the device. No case runs on one.
- The network: the hub, package indices, a judge's endpoint and Weights & Biases (the tests have servers of
  their own).
- The notebooks, and browsers other than chromium.
- What a model or a tokenizer does after it is loaded: a run that ends by it is a failed record.
- Faults of libraries (torch, transformers, tokenizers, Pillow, pyarrow, uvicorn) that no case met.
- Kills, races and full disks: [A fault campaign](chaos.md).
"""


@dataclass
class Part:
    """A part of the campaign: its cases, how many of them are run at a time, the share of them that a short
    campaign runs, and what came of them."""

    name: str
    title: str
    cases: Callable[[Home], Iterator[Case]]
    workers: int = 2
    share: float = 1.0
    rows: dict[str, Row] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return sum(row.tried for row in self.rows.values())

    @property
    def problems(self) -> list[str]:
        return [words for row in self.rows.values() for words in row.problems]

    def summary(self) -> str:
        return f"{self.title}: {self.tried} tried in {self.seconds:.0f} s, {len(self.problems)} did not hold"


def text_of(parts: list[Part], seed: int, seconds: float) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    problems = [words for part in parts for words in part.problems]
    verdict = f"All {sum(part.tried for part in parts):,} held."
    if problems:
        verdict = (
            f"{len(problems)} did not hold; they stand below their table."
            if len(problems) > 1
            else "One did not hold."
        )
    measured = (
        f"Measured on {datetime.date.today()}, {os.cpu_count()} CPU cores, commit {commit or 'unknown'},"
        f" seed {seed}: {sum(part.tried for part in parts):,} cases in {seconds / 60:.0f} minutes."
    )
    lines = [INTRODUCTION, measured, "", "## Verdict", "", verdict, "", HELD]
    for part in parts:
        lines += ["", f"## {part.title}", "", "| what was tried | cases | refused | taken | did not hold |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        rows = [
            (kind, row.tried, row.refused, row.taken, len(row.problems)) for kind, row in part.rows.items()
        ]
        rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 5))))
        lines += [
            f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |"
            for row in rows
        ]
        lines += [
            "",
            *(
                f"- {' '.join(words.split())[:300].replace('<', '&lt;').replace('|', '/')}"
                for words in part.problems
            ),
        ]
    lines += ["", NOT_COVERED]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"
