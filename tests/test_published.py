"""What is published under runs/records: whole, without anybody's paths, and what the
pages say of it is what it says."""

import re
from collections import defaultdict

import pytest
from tiers import slow_except

from analysis.results.__main__ import main
from runs.config import expand
from runs.record.cell import crossfit_of, is_trial_or_stopped
from runs.record.ledger import PUBLISHED, read_study, study_folders
from runs.record.schema import FINISHED
from runs.run import identity
from runs.run.definition import overrides_of
from runs.run.identity import run_id

pytestmark = pytest.mark.nets

STUDIES = study_folders()


@pytest.mark.slow
# the pictures are there, and their bytes are matplotlib's
@pytest.mark.usefixtures("undrawn")
def test_the_pages_are_those_of_the_records(capsys):
    assert main(["check=true"]) == 0, capsys.readouterr()


def test_the_pages_can_be_read():
    docs = PUBLISHED.parents[1] / "docs"
    assert len((docs / "results.md").read_text().splitlines()) <= 120
    words = {
        path.stem: len(path.read_text().split())
        for path in (docs / "results").glob("*.md")
    }
    # which holds tables alone
    words.pop("comparisons")
    assert sum(words.values()) <= 12_400
    for study in STUDIES:
        answer, _, table = (
            (docs / "results" / f"{study.name}.md").read_text().split("\n\n")[2:5]
        )
        assert len(answer.split()) <= 80
        assert table.startswith("| method")


@pytest.mark.parametrize("study", STUDIES, ids=lambda folder: folder.name)
def test_a_study_is_whole_and_says_how_it_was_run(study):
    ledger, lines = (
        read_study(study),
        (study / "records.jsonl").read_text().splitlines(),
    )
    assert not ledger.problems
    assert [*ledger.records] == sorted(ledger.records)
    assert len(lines) == len(ledger.records) > 0
    assert {path.name for path in study.iterdir()} <= {
        "NOTES.md",
        "records.jsonl",
        "measures.jsonl",
        "sources",
    }
    assert (study / "NOTES.md").read_text().strip()
    for one in ledger:
        assert one["code"]["commit"]
        assert not one["code"]["dirty"], one["id"]  # what made it can be checked out
        assert overrides_of(one), one["id"]
        # Cross-fitting needs no run again: each curve has both halves
        assert (one["status"] in FINISHED, bool(crossfit_of(one))) == (True, True), one[
            "id"
        ]


def test_no_record_tells_where_files_lay():
    place = re.compile(r"""(^|[\s"'=(])(~?/[\w.-]+/|[A-Za-z]:\\)""")
    # Which rows are right is base64, whose letters have slashes among them
    bits = re.compile(r'"right": ?("[\w+/=]*"|\{[^}]*\})')
    for path in PUBLISHED.rglob("*.json*"):
        assert not place.search(bits.sub("", path.read_text())), path


@pytest.mark.parametrize(
    "study",
    slow_except(STUDIES, PUBLISHED / "e2e_smollm2"),
    ids=lambda folder: folder.name,
)
def test_the_overrides_of_a_record_compose_its_run(study, monkeypatch):
    """By the id, with the contents of model and data that the record names. Of a dozen
    records or so, and of one at each of the rates that a row has had: its recipe has
    the last of them alone."""
    records, rates = [*read_study(study)], defaultdict(dict)
    for one in records:
        if not is_trial_or_stopped(one["config"]):
            cell, train = one["cell"], one["config"]["train"]
            rates[cell["row"], cell["task"]].setdefault(
                (train["lr"], train["lr_head"]), one
            )
    several = [one for of in rates.values() if len(of) > 1 for one in of.values()]
    for one in [*records[:: max(12, len(records) // 12)], *several]:
        monkeypatch.setattr(identity, "model_content", lambda _, of=one: of["model"])
        monkeypatch.setattr(
            identity, "data_content", lambda _, of=one: of["data"]["content"]
        )
        (run,) = expand(overrides_of(one))
        assert run_id(run) == one["id"]
