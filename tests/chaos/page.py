"""The counts of campaigns as JSON, a file each in docs/chaos, and docs/chaos.md, which
is written from all of them."""

import datetime
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.grounds import GROUNDS
from chaos.watch import PHASES

from runs.record.ledger import ROOT
from runs.record.text import duration
from runs.run.provenance import git_output

if TYPE_CHECKING:
    from chaos.campaign import Campaign

FOLDER = ROOT / "docs" / "chaos"
PAGE = ROOT / "docs" / "chaos.md"
#: A folder for each day and machine, with the tables of benchmarks.
BENCH = ROOT / "docs" / "bench"
#: Where the written part of the page ends.
RESULTS = "## Results\n"
TITLES = {
    "local": "On one machine",
    "ray": "On Ray",
    "slurm": "On Slurm",
}


@dataclass
class Counts:
    """What a campaign has counted."""

    launcher: str
    seed: int
    date: str
    commit: str
    cores: int
    seconds: float
    commands: int
    rounds: int
    #: phase -> victim -> times
    kills: dict[str, dict[str, int]] = field(default_factory=dict)
    disturbances: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """How many kills there were."""
        return sum(sum(victims.values()) for victims in self.kills.values())


def counts_of(campaign: "Campaign", seed: int, seconds: float) -> Counts:
    """The counts of a campaign that has ended."""
    kills = dict[str, dict[str, int]]()
    for (phase, victim), times in sorted(campaign.kills.items()):
        kills.setdefault(phase, {})[victim] = times
    return Counts(
        launcher=campaign.ground.name,
        seed=seed,
        date=datetime.date.today().isoformat(),
        commit=_commit(),
        cores=len(os.sched_getaffinity(0)),
        seconds=round(seconds, 1),
        commands=campaign.commands,
        rounds=campaign.rounds,
        kills=kills,
        disturbances=dict(sorted(campaign.disturbances.items())),
        problems=campaign.problems,
    )


def _commit() -> str:
    """The commit of the code, with a mark where files differ from it. docs/ is no code:
    a campaign before this one has written its counts there."""
    commit = git_output("rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    changed = git_output(
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":!docs",
        ":!runs/records",
    )
    return f"{commit[:8]} with changes" if changed else commit[:8]


def save(counts: Counts, folder: Path = FOLDER) -> Path:
    """Writes the counts of a campaign into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{counts.launcher}-seed-{counts.seed}.json"
    path.write_text(json.dumps(asdict(counts), indent=1) + "\n")
    return path


def read(folder: Path = FOLDER) -> list[Counts]:
    """The counts of every campaign in a folder."""
    paths = sorted(folder.glob("*-seed-*.json"))
    return [Counts(**json.loads(path.read_text())) for path in paths]


def write_page(page: Path = PAGE, folder: Path = FOLDER, bench: Path = BENCH) -> None:
    """Writes the results of all campaigns, and of the newest `make bench-runs`, below
    the written part of the page."""
    written = page.read_text(encoding="utf-8").partition(RESULTS)[0]
    parts = [written + RESULTS.rstrip()]
    campaigns = read(folder)
    for launcher in GROUNDS:
        chosen = [counts for counts in campaigns if counts.launcher == launcher]
        parts.append(section(launcher, chosen))
    parts.append(many_runs_section(bench))
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def section(launcher: str, campaigns: list[Counts]) -> str:
    """The results on one launcher."""
    lines = [f"### {TITLES[launcher]}", ""]
    if not campaigns:
        lines.append(f"No campaign was run yet: `make chaos LAUNCHER={launcher}`.")
        return "\n".join(lines)
    lines += [f"- {origin(counts)}" for counts in campaigns]
    lines += ["", verdict(campaigns), ""]
    lines += kills_table(launcher, campaigns)
    disturbances = Counter[str]()
    for counts in campaigns:
        disturbances.update(counts.disturbances)
    if disturbances:
        lines += ["", "| other disturbance | times |", "| --- | ---: |"]
        for name, times in sorted(disturbances.items()):
            lines.append(f"| {name} | {times} |")
    return "\n".join(lines)


def origin(counts: Counts) -> str:
    """When and where a campaign was run, in a sentence."""
    return (
        f"Seed {counts.seed}: {counts.number} kills in {counts.commands} commands, "
        f"which took {duration(counts.seconds)} on {counts.date} with {counts.cores} "
        f"CPU cores at commit {counts.commit}."
    )


def verdict(campaigns: list[Counts]) -> str:
    """Whether everything held."""
    rounds = sum(counts.rounds for counts in campaigns)
    sentences = []
    for counts in campaigns:
        for problem in counts.problems:
            sentences.append(f"- Seed {counts.seed}: {problem}.")
    if sentences:
        return "\n".join(["These did not hold:", "", *sentences])
    folders = "the disturbed folder"
    if rounds > 1:
        folders = f"each of {rounds} disturbed folders"
    return (
        f"Everything held. In {folders} every record, adapter, head and text equals that "
        "of the undisturbed sweep, nothing is left over, and no process stayed."
    )


def kills_table(launcher: str, campaigns: list[Counts]) -> list[str]:
    """A row for each phase that can happen, and a column for each victim."""
    victims = [*GROUNDS[launcher].victims]
    total = Counter[str]()
    rows = []
    for phase in PHASES:
        times = Counter[str]()
        for counts in campaigns:
            times.update(counts.kills.get(phase, {}))
        total.update(times)
        rows.append(_row(phase, times, victims))
    header = ["the run was", *victims, "all"]
    return [
        f"| {' | '.join(header)} |",
        f"| --- |{' ---: |' * (len(victims) + 1)}",
        *rows,
        _row("all", total, victims),
    ]


def _row(name: str, times: Counter[str], victims: list[str]) -> str:
    cells = [str(times[victim] or "") for victim in victims]
    return f"| {' | '.join([name, *cells, str(times.total())])} |"


def many_runs_section(bench: Path) -> str:
    """What many tiny runs in one command cost, by the newest benchmark."""
    lines = ["### Many runs in one command", ""]
    paths = sorted(bench.glob("*/runs.json"))
    if not paths:
        lines.append("It was not measured yet: `make bench-runs N=500`.")
        return "\n".join(lines)
    measured = json.loads(paths[-1].read_text())
    rows = measured["rows"]
    memory = "parent's RSS, MB"
    last = rows[-1]
    count = sum(row["new runs"] for row in rows)
    overhead = sum(row["overhead a run, s"] * row["new runs"] for row in rows) / count
    early = next((row for row in rows if row["runs"] >= 10), last)
    lines += [
        f"One command did {last['runs']:,} tiny runs of one training step, one after "
        f"another. Apart from its training a run took {overhead:.2f} seconds. The "
        f"command used {early[memory]:.0f} MB of memory after {early['runs']} runs, "
        f"and {last[memory]:.0f} MB at the end. It was measured on {measured['date']} "
        f"at commit {str(measured['code']['commit'])[:8]}; "
        f"[the table](bench/{paths[-1].parent.name}/runs.md) has each step.",
    ]
    return "\n".join(lines)
