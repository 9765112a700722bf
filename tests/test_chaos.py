"""The fault campaign itself: what it sees, what it compares, and what its page says.
`make chaos` runs one."""

import json
import random
from collections import Counter

import ledgers
import pytest
from chaos import __main__ as command
from chaos import watch
from chaos.campaign import Campaign, missed_phases
from chaos.folder import damage_a_file, differences, finished
from chaos.material import Sweep, make_sweeps
from chaos.page import RESULTS, Counts, kills_table, read, save, write_page
from chaos.watch import PHASES
from running import begin

from runs.config import expand
from runs.record.ledger import write_record
from runs.training.train import train

pytestmark = pytest.mark.determinism

HOME = "/a campaign"


@pytest.mark.slow  # three tiny runs, one by reward
def test_each_sweep_names_the_phases_that_its_runs_report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    without_file = {"starting", "writing the record"}
    for sweep in make_sweeps(tmp_path):
        run = expand([*sweep.overrides, f"output={tmp_path / sweep.name}"])[0]
        reported = set[str]()
        train(begin(run, lambda event: reported.add(event["phase"])))  # noqa: B023
        names = {watch.phase_name(phase) for phase in reported}
        assert names | without_file == {*sweep.phases}
    assert {*PHASES} == {*sweep.phases}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An output folder in which process 77 of the campaign has a run's lock."""
    monkeypatch.setattr(watch, "is_member", lambda pid, home: pid == 77)
    for name in ("locks", "runs/ours", "records"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "locks" / "ours").write_text("77 here")
    (tmp_path / "locks" / "theirs").write_text("78 here")
    (tmp_path / "locks" / "nobody").write_text("")
    return tmp_path


def test_a_watch_sees_each_phase_from_the_lock_to_the_record(place):
    looking = watch.Watch(place, place)
    progress = place / "runs" / "ours" / "progress.json"
    seen = [looking.look()]
    for phase, pid in (("loading", 76), ("training, first step", 77)):
        progress.write_text(json.dumps({"phase": phase, "pid": pid}))
        seen.append(looking.look())
    progress.write_text("{")
    seen.append(looking.look())
    phases = [[(run.run_id, run.phase) for run in runs] for runs in seen]
    assert phases == [
        [("ours", "starting")],
        [("ours", "starting")],  # what an earlier process has left
        [("ours", "training")],
        [("ours", "writing the record")],
    ]


def test_a_damaged_record_is_never_one_that_looks_sound(place):
    write_record(place, ledgers.record())
    (path,) = place.glob("records/*.json")
    sound = path.read_bytes()
    kinds = Counter[str | None]()
    for seed in range(200):
        path.write_bytes(sound)
        kinds[damage_a_file(place, random.Random(seed))] += 1
        if path.read_bytes() != sound:
            assert finished(place) == {}
    assert kinds.keys() == {None, "a record: cut short", "a record: garbage"}


def test_what_differs_is_missing_or_is_left_over_is_a_sentence_each():
    expected = {"a": 1, "b": 2, "c": 3}
    assert differences(expected, expected) == []
    actual = {"a": 1, "b": 3, "d": 4}
    sentences = ["b differs", "c is missing", "d is left over"]
    assert differences(expected, actual) == sentences


def test_the_next_kill_prefers_a_phase_that_was_hit_least():
    campaign = Campaign.__new__(Campaign)
    campaign.dice = random.Random(0)
    campaign.kills = Counter({(phase, "run"): 9 for phase in PHASES})
    del campaign.kills["scoring", "run"]
    sweeps = [Sweep("write", [], tuple(PHASES)), Sweep("classify", [], ("loading",))]
    chosen = Counter(campaign._choose(sweeps)[1] for _ in range(100))
    assert chosen["scoring"] > 80
    assert missed_phases(campaign.kills) == ["scoring"]


def test_a_campaign_on_ray_without_ray_ends_before_its_first_command(
    monkeypatch, capsys
):
    monkeypatch.setattr("chaos.grounds.find_spec", lambda name: None)
    monkeypatch.setattr(Campaign, "_start", None)
    assert command.main(["3", "1", "--launcher=ray", "--no-page"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_the_page_adds_seeds_up_and_shows_phases_that_were_not_reached(tmp_path):
    page = tmp_path / "chaos.md"
    page.write_text(f"# About\n\n{RESULTS}\nfrom before\n")
    for seed, problems in ((1, []), (2, ["record r differs"])):
        counts = Counts("local", seed, "2026-12-01", "abc", 2, 90.0, 5, 1)
        counts.kills = {"loading": {"run": seed, "command": 1}}
        counts.disturbances = {"a record: garbage": 1}
        counts.problems = problems
        save(counts, tmp_path)
    write_page(page, tmp_path, tmp_path)
    text = page.read_text()
    assert text.startswith("# About\n\n## Results\n\n### On one machine\n")
    assert "from before" not in text
    assert "| loading | 3 |  | 2 |  | 5 |\n" in text
    assert "| scoring |  |  |  |  | 0 |\n" in text
    assert "- Seed 2: record r differs." in text
    assert "Everything held" not in text
    assert "| a record: garbage | 2 |" in text
    assert "make chaos LAUNCHER=slurm" in text
    assert len(kills_table("local", read(tmp_path))) == len(PHASES) + 3


def test_the_page_says_what_many_runs_cost(tmp_path):
    (tmp_path / "day").mkdir()
    row = {"overhead a run, s": 0.5, "parent's RSS, MB": 200.4}
    rows = [row | {"runs": 10, "new runs": 10}]
    rows.append(row | {"runs": 100, "new runs": 90, "overhead a run, s": 1.0})
    measured = {"date": "2026-12-01", "code": {"commit": "abc"}, "rows": rows}
    (tmp_path / "day" / "runs.json").write_text(json.dumps(measured))
    page = tmp_path / "chaos.md"
    page.write_text(RESULTS)
    write_page(page, tmp_path, tmp_path)
    text = page.read_text()
    assert "One command did 100 tiny runs" in text
    assert "a run took 0.95 seconds" in text
    assert "(bench/day/runs.md)" in text
