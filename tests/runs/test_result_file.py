"""A run as a result file of peft's method comparison, read by the leaderboard."""

import json

import pytest
from ledgers import exact_record

from analysis.leaderboard.reader import read_leaderboard
from runs import export
from runs.command.errors import UserError
from runs.record.ledger import write_record

pytestmark = pytest.mark.properties

CORRECT = 646


@pytest.fixture
def write(tmp_path):
    """Writes a finished run of GSM8K; its id."""

    def write(row="lora", percent=100 * CORRECT / 1319, **config):
        record = exact_record(row, gsm8k=percent)
        record["config"]["method"] |= {"rank": 32, "sites": ["query", "value"]}
        record["config"]["train"] |= config
        record |= {"steps": 5000, "effective_batch": 4}
        record["versions"] = {"transformers": "5.24.0", "peft": "0.21", "torch": "2.13"}
        record["cost"] |= {"peak_memory_bytes": 2**34, "adapter_bytes": 2**20}
        record["parameters"]["total"] = 3_221_924_864
        write_record(tmp_path, record)
        return record["id"]

    return write


def run(tmp_path, name, *words):
    folder = tmp_path / "board"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    line = [name, f"leaderboard={path}", f"output={tmp_path}", *words]
    assert export.main(line) == 0
    return path


def test_the_leaderboard_reads_what_is_exported(write, tmp_path, capsys):
    name = write(lr=3e-4)
    path = run(tmp_path, name)
    assert str(path.parent) in capsys.readouterr().out
    results, problems = read_leaderboard(str(path.parent))
    assert not problems
    (result,) = results.to_dict("records")
    assert (result["correct"], result["lr"], result["method"]) == (
        CORRECT,
        3e-4,
        "lora",
    )
    # greedy, as this project decodes, also where transformers would sample
    assert result["decoding"] == "greedy"
    assert (result["memory_bytes"], result["file_bytes"]) == (2**34, 2**20)
    assert result["row"].startswith("lora/llama3_2_3b-")
    config = json.loads(path.read_text())["run_info"]["peft_config"]
    assert config["target_modules"] == ["query", "value"]


def test_full_fine_tuning_has_no_adapter(write, tmp_path):
    path = run(tmp_path, write("full"))
    assert json.loads(path.read_text())["run_info"]["peft_config"] is None


def test_a_run_of_another_task_or_of_some_questions_is_refused(write, tmp_path):
    other = exact_record("vera", task="sums", sums=12.5)
    write_record(tmp_path, other)
    for name, why in (
        (other["id"], "has no score on GSM8K"),
        (write("dora", percent=12.0), "not scored on all"),
    ):
        with pytest.raises(UserError, match=why):
            run(tmp_path, name)


def test_nothing_is_overwritten_and_no_format_goes_with_it(write, tmp_path):
    name = write()
    path = run(tmp_path, name)
    before = path.read_text()
    with pytest.raises(UserError, match="is there already"):
        run(tmp_path, name)
    with pytest.raises(UserError, match="rank= does not go with leaderboard="):
        run(tmp_path, name, "rank=8")
    with pytest.raises(UserError, match="does not take"):
        run(tmp_path, name, "peft", "folder")
    assert path.read_text() == before
