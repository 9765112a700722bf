"""Rows in the user's cache are those that the records give now."""

import json
import math
import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import record

from analysis import rows as rows_module
from analysis.rows import RowMaker
from runs.record import kept_rows
from runs.record import ledger as ledger_module
from runs.record.kept_rows import (
    decode_rows,
    encode_rows,
    remove_unused,
    rows_cache_folder,
)
from runs.record.ledger import (
    PUBLISHED,
    ROOT,
    read_ledger,
    record_path,
    study_folders,
    write_record,
    write_study,
)
from tasks import fetch

pytestmark = pytest.mark.properties

COUNT = 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, which keeps the rows of few records, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_rows, "FEWEST_ROWS", 2)
    return rows_cache_folder()


@pytest.fixture
def opened(monkeypatch):
    """The places of the records that were read since it was cleared."""
    places = []
    read_whole = ledger_module.read_record

    def read_counted(place, *more):
        places.append(os.path.basename(place))
        return read_whole(place, *more)

    monkeypatch.setattr(ledger_module, "read_record", read_counted)
    return places


@pytest.fixture
def output(tmp_path):
    """A folder of records that were written some time ago."""
    for seed in range(COUNT):
        settle(write_record(tmp_path, record("vera", "mrpc", seed, 0.5)))
    return tmp_path


def settle(path, seconds=60):
    ago = time.time() - seconds
    os.utime(path, (ago, ago))


def read(output):
    return read_ledger(output, published=False, make_row=RowMaker())


def test_an_unchanged_record_is_read_once(output, opened):
    first = read(output)
    assert len(opened) == COUNT
    opened.clear()
    second = read(output)
    assert opened == []
    assert repr(second.records) == repr(first.records)


def test_the_record_behind_a_row_is_read_when_it_is_asked_for(output, opened):
    read(output)
    opened.clear()
    run = record("vera", "mrpc", 3, 0.5)["id"]
    assert read(output).whole_record(run)["cell"]["seed"] == 3
    assert opened == [f"{run}.json"]


@pytest.mark.parametrize("seconds", range(30, 38))
def test_a_changed_record_and_a_new_one_are_read_again(output, opened, seconds):
    """Once, whichever of the old and the new row is read first: files are named by
    their content."""
    read(output)
    changed = record("vera", "mrpc", 2, 0.8)
    settle(write_record(output, changed), seconds)
    new = record("vera", "mrpc", 9, 0.9)
    settle(write_record(output, new))
    opened.clear()
    ledger = read(output)
    assert {*opened} == {f"{one['id']}.json" for one in (changed, new)}
    assert ledger.records[changed["id"]].value == 80
    assert ledger.records[new["id"]].value == 90
    opened.clear()
    assert repr(read(output).records) == repr(ledger.records)
    assert opened == []


def test_a_record_that_is_gone_has_no_row(output):
    read(output)
    run = record("vera", "mrpc", 2, 0.5)["id"]
    record_path(output, run).unlink()
    assert run not in read(output).records


def test_the_row_of_a_record_that_was_just_written_is_not_kept(output, opened):
    for seed in range(COUNT):
        write_record(output, record("vera", "mrpc", seed, 0.6))
    read(output)
    opened.clear()
    read(output)
    assert len(opened) == COUNT


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"rows":', '"rows": '),
        lambda text: text.replace("50.0", "51.0"),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
    ],
)
def test_a_damaged_file_of_rows_counts_for_nothing(output, opened, cache, damage):
    first = read(output)
    for path in cache.rglob("*.json"):
        assert damage(path.read_text()) != path.read_text()
        path.write_text(damage(path.read_text()))
    opened.clear()
    assert repr(read(output).records) == repr(first.records)
    assert len(opened) == COUNT


def test_a_file_of_another_form_counts_for_nothing(output, opened, cache):
    first = read(output)
    for path in [*cache.rglob("*.json")]:
        for text in ('{"values": []}', "[1]", '{"values": [], "rows": [[1, 2]]}'):
            path.with_name(f"{kept_rows._hash_of(text)}.json").write_text(text)
        path.unlink()
    opened.clear()
    assert repr(read(output).records) == repr(first.records)
    assert len(opened) == COUNT


def test_other_code_makes_its_own_rows(output, opened, monkeypatch):
    read(output)
    monkeypatch.setattr(rows_module, "hash_of_code", lambda: "another version")
    opened.clear()
    read(output)
    assert len(opened) == COUNT


def test_the_code_of_a_row_is_every_file_that_it_depends_on():
    """What a row is made from lies in analysis/facts.py, analysis/rows.py and
    runs/record."""
    files = rows_module.files_of_code()
    names = {str(path.relative_to(ROOT)) for path in files}
    assert {"analysis/facts.py", "analysis/rows.py", "runs/record/cell.py"} <= names
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            module = re.match(
                r"\s*(?:from|import) ((?:analysis|runs|tasks|vera)\b\S*)", line
            )
            if module and module[1] not in ("analysis", "runs.record"):
                assert f"{module[1].replace('.', '/')}.py" in names


def test_a_cache_that_cannot_be_written_costs_time_alone(output, opened, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in its place")
    first = read(output)
    opened.clear()
    assert repr(read(output).records) == repr(first.records)
    assert len(opened) == COUNT


def test_rows_of_other_code_go_after_a_month(output, cache):
    read(output)
    (folder,) = cache.iterdir()
    remove_unused(cache)
    assert folder.is_dir()
    settle(folder, kept_rows.MONTH_S + 60)
    remove_unused(cache)
    assert not folder.exists()


# --- studies


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "PUBLISHED", tmp_path / "studies")
    folder = tmp_path / "studies" / "a_study"
    write_study(folder, [record("vera", "mrpc", seed, 0.5) for seed in range(COUNT)])
    settle(folder / "records.jsonl")
    return folder


def test_a_study_is_read_again_once_its_file_has_changed(tmp_path, study, opened):
    def read_studies():
        return read_ledger(tmp_path / "none", make_row=RowMaker())

    first = read_studies()
    opened.clear()
    second = read_studies()
    assert opened == []
    assert repr(second.records) == repr(first.records)
    run = record("vera", "mrpc", 3, 0.5)["id"]
    assert second.whole_record(run)["cell"]["seed"] == 3
    write_study(study, [record("vera", "mrpc", 3, 0.75)])
    settle(study / "records.jsonl", seconds=30)
    assert read_studies().records[run].value == 75


@pytest.mark.parametrize("lost", range(3))
def test_a_study_with_a_lost_file_of_rows_has_all_its_records(
    tmp_path, study, opened, cache, monkeypatch, lost
):
    monkeypatch.setattr(kept_rows, "MOST_ROWS", 2)
    first = read_ledger(tmp_path / "none", make_row=RowMaker())
    files = sorted(cache.rglob("*.json"))
    assert len(files) == 3
    files[lost].unlink()
    opened.clear()
    second = read_ledger(tmp_path / "none", make_row=RowMaker())
    assert repr(second.records) == repr(first.records)
    assert len(opened) in (1, 2)


def test_a_damaged_line_of_a_study_is_a_problem_each_time(tmp_path, study):
    path = study / "records.jsonl"
    path.write_text(path.read_text() + "{\n")
    settle(path)
    for _ in range(2):
        ledger = read_ledger(tmp_path / "none", make_row=RowMaker())
        (problem,) = ledger.problems
        assert f"records.jsonl line {COUNT + 1}" in problem
        assert len(ledger.records) == COUNT


@pytest.mark.slow  # every published record, three times
def test_every_published_record_has_the_same_row_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "PUBLISHED", PUBLISHED)
    made = read_ledger(tmp_path / "none", make_row=RowMaker())
    from_cache = read_ledger(tmp_path / "none", make_row=RowMaker())
    assert len(made.records) > 2000
    assert repr(from_cache.records) == repr(made.records)
    assert from_cache.problems == made.problems
    assert from_cache.origin == made.origin
    make_row = RowMaker()
    for folder in study_folders()[:3]:
        for whole in ledger_module.read_study(folder):
            row = from_cache.records[whole["id"]]
            if from_cache.origin[whole["id"]] == folder.name:
                assert repr(row) == repr(make_row(whole))


# --- rows as JSON

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
SEVERAL = st.lists(PLAIN, max_size=2)
VALUES = (
    PLAIN
    | SEVERAL
    | SEVERAL.map(tuple)
    | st.dictionaries(st.text(min_size=1, max_size=3), SEVERAL, max_size=2)
)
ROWS = st.lists(st.lists(VALUES, max_size=4), max_size=3)


@given(ROWS)
def test_rows_come_back_with_their_values_and_types(made):
    lines = [[[f"{number}.json", 0, 0, 0], [1, 2, 3]] for number in range(len(made))]
    decoded = [*decode_rows(encode_rows(lines, made), {})]
    assert repr([row for *_, row in decoded]) == repr(made)
    assert [[part, stamp] for part, stamp, _ in decoded] == lines


def test_equal_values_are_in_memory_once():
    settings = {"lr": 0.5, "empty": math.nan}
    lines = [[["a.json"], [1]], [["b.json"], [1]]]
    text = encode_rows(lines, [["same text", settings], ["same text", settings]])
    assert len(json.loads(text)["values"]) == 2
    known = {}
    (*_, first), (*_, second) = decode_rows(text, known)
    assert first[1] is second[1]
    (*_, third), _ = decode_rows(text, known)
    assert third[1] is first[1]


def test_the_cache_is_that_of_everything_else():
    assert rows_cache_folder().parent == fetch.cache_folder()
