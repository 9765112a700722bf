"""The records of an output folder are read one by one."""

import os
import shlex

import pytest
from ledgers import record
from running import output_of, trained

from runs import evaluate, plan
from runs.command.errors import UserError
from runs.command.parser import RecordSettings
from runs.record import folder
from runs.record.folder import RecordFolder
from runs.record.ledger import record_path, write_record

pytestmark = pytest.mark.properties


@pytest.fixture
def opened(monkeypatch):
    """The names of the record files that were opened."""
    names = []
    real = folder.read_record

    def read(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(folder, "read_record", read)
    return names


def fill(output, count):
    for number in range(count):
        made = record(seed=number) | {"id": f"{number:012x}"}
        write_record(output, made)
        path = record_path(output, made["id"])
        os.utime(path, ns=(number * 10**9, number * 10**9))


def test_a_record_is_read_when_it_is_asked_for(tmp_path, opened):
    fill(tmp_path, 5)
    records = RecordFolder(tmp_path)
    assert opened == []
    assert records.get(f"{3:012x}")["cell"]["seed"] == 3
    assert records.get(f"{3:012x}") is records.get(f"{3:012x}")
    assert records.get("f" * 12) is None
    assert records.get(None) is None
    assert opened == [f"{3:012x}.json", f"{'f' * 12}.json"]


def test_the_newest_records_are_those_that_were_written_last(tmp_path, opened):
    fill(tmp_path, 5)
    newest = RecordFolder(tmp_path).newest(2)
    assert [record["cell"]["seed"] for record in newest] == [4, 3]
    assert len(opened) == 2
    assert RecordFolder(tmp_path / "nowhere").newest(2) == []


def test_a_damaged_record_is_a_problem(tmp_path):
    fill(tmp_path, 1)
    record_path(tmp_path, "0" * 12).write_text("{")
    records = RecordFolder(tmp_path)
    assert records.get("0" * 12) is None
    (problem,) = records.problems
    assert "not a record" in problem


def test_a_plan_opens_the_records_of_its_runs_and_the_newest(
    words, opened, monkeypatch, capsys
):
    done = trained(words)
    fill(output_of(words), 9)
    monkeypatch.setattr("runs.forecast.pace.PACE_RECORDS", 2)
    assert plan.main([*words, "seed=0,1"]) == 0
    assert "done 1" in capsys.readouterr().out
    assert len(opened) == len(set(opened)) <= 4  # two runs, and the two newest
    assert f"{done['id']}.json" in opened


def test_what_composes_runs_opens_their_records_alone(words, opened):
    done = trained(words)
    fill(output_of(words), 9)
    line = evaluate.read_line([*words, "seed=0"], RecordSettings)
    assert [record["id"] for record in evaluate.finished_records(line)] == [done["id"]]
    assert opened == [f"{done['id']}.json"]


def test_without_a_finished_run_the_command_to_type_first_is_whole(words, tmp_path):
    """With the folder of --config-dir, and not only the option's name."""
    own = tmp_path / "own"
    own.mkdir()
    line = evaluate.read_line([*words, "--config-dir", str(own)], RecordSettings)
    with pytest.raises(UserError, match="none of these 1 runs") as error:
        evaluate.finished_records(line)
    command = str(error.value).partition("First: vera-bench ")[2]
    assert shlex.split(command)[0] == f"--config-dir={own}"
    assert shlex.split(command)[1:] == [*line.overrides]


def test_the_beginning_of_an_id_opens_one_record(words, opened):
    done = trained(words)
    fill(output_of(words), 9)
    assert evaluate.find_finished(done["id"][:9], output_of(words))["id"] == done["id"]
    assert opened == [f"{done['id']}.json"]
