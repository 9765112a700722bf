"""What is published under runs/records: whole, without anybody's paths, and what the pages say of it is what it says."""

import re

import pytest

from analysis import results
from runs.config import expand
from runs.evaluate import words_of
from runs.identity import run_id
from runs.record import PUBLISHED, defining, read_study, study_folders

STUDIES = study_folders()


def test_the_pages_are_those_of_the_records(capsys):
    assert results.main(["--check"]) == 0, capsys.readouterr()


@pytest.mark.parametrize("study", STUDIES, ids=lambda folder: folder.name)
def test_a_study_is_whole_and_says_how_it_was_run(study):
    ledger = read_study(study)
    assert ledger.records
    assert not ledger.problems
    assert (study / "NOTES.md").read_text().strip()
    for one in ledger:
        assert one["code"]["commit"]
        assert not one["code"]["dirty"], one["id"]  # what made it can be checked out


def test_no_record_tells_where_files_lay():
    place = re.compile(r"""(^|[\s"'=(])(~?/[\w.-]+/|[A-Za-z]:\\)""")
    for path in PUBLISHED.rglob("*.json"):
        assert not place.search(path.read_text()), path


@pytest.mark.parametrize("study", STUDIES, ids=lambda folder: folder.name)
def test_the_words_of_a_record_compose_its_run(study):
    """By what needs no data; and by the id where the data come with a package."""
    for one in [*read_study(study)][::12]:
        (run,) = expand(words_of(one))
        assert (run.row, run.seed) == (one["cell"]["row"], one["cell"]["seed"])
        for part in ("train", "task"):
            wanted, found = (defining(config, part) for config in (one["config"], run.config))
            wanted = {key: value for key, value in wanted.items() if key not in ("data_dir", "cache_dir")}
            assert wanted == {key: value for key, value in found.items() if key in wanted}
        if one["cell"]["task"] == "digits":
            assert run_id(run) == one["id"]
