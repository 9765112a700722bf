"""What the campaign counts, and the page that it writes."""

import datetime
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from attack.cases import MEGABYTES, SECONDS, Case, Home, Row

#: What no case tries, for the page.
NOT_COVERED = [
    (
        "Other users of the same machine: who may write into the project's folder, its outputs or its cache"
        " can do as they like."
    ),
    "What a GPU does: 4-bit models, kernels, memory of the device. Nothing here runs on one.",
    (
        "The network: the hub, package indices, a judge's endpoint and Weights & Biases (the tests have"
        " servers of their own)."
    ),
    "The notebooks, and other browsers than chromium.",
    "What a model or a tokenizer does once it is loaded: a run that dies of it is a failed record.",
    (
        "Faults of the libraries below (torch, transformers, tokenizers, Pillow, pyarrow, uvicorn) that no"
        " case here met."
    ),
    "Kills, races and full disks: docs/chaos.md.",
]


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
    lines = [
        "# A campaign of files, words and requests from strangers",
        "",
        (
            "`make attack` (tests/attack; `SEED=` for other drawn cases, `SHORT=1` for a part of them in"
            " two or three minutes) gives the"
        ),
        (
            "harness what nobody meant it to read. Some is made by hand; much is sound, and then changed at"
            " random."
        ),
        "Each case is done in a process of its own, which is watched.",
        "",
        (
            f"Measured on {datetime.date.today()}, {os.cpu_count()} CPU cores, commit {commit or 'unknown'},"
            f" seed {seed}: {sum(part.tried for part in parts):,} cases in {seconds / 60:.0f} minutes."
        ),
        "",
        "## Verdict",
        "",
        verdict,
        "",
        (
            "Held means: refused in one line, or taken where it is sound or harmless; no traceback; within"
            f" {SECONDS:g} seconds"
        ),
        (
            f"of the processor and {MEGABYTES:g} MB, or what the case's kind is known to need; no program"
            " started and no address"
        ),
        (
            "asked for that the project does not ask for itself; and a stranger's code, which would have left"
            " a file behind, did"
        ),
        (
            "not run. Of an adapter, too: the base weights have the same fingerprint, and a model whose file"
            " is refused is as it"
        ),
        (
            "was. Of a ledger: each command ends well beside the odd files, names them, and shows the sound"
            " records."
        ),
    ]
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
    lines += ["", "## Not covered", "", *(f"- {words}" for words in NOT_COVERED)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"
