"""Runs as one table for pandas: every run a row, in each form."""

import pandas as pd
import pytest
from ledgers import record

from analysis.records import main
from runs.command.errors import UserError
from runs.record.ledger import write_record

pytestmark = pytest.mark.properties


@pytest.fixture
def output(tmp_path):
    trial = record("vera", "mrpc", 7)
    trial["config"]["task"]["holdout"] = 0.2
    evil = record("lora", "rte", 0) | {
        "label": {"row": "=1+1", "model": "m", "task": "t"}
    }
    both = (
        record("vera", "rte", 0, 0.8),
        record("vera", "rte", 1, 0.9, deviations=["a", "b"]),
    )
    for one in (*both, trial, evil):
        write_record(tmp_path, one)
    return tmp_path


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
def test_each_run_is_a_row_with_numbers_and_settings(form, output, capsys):
    path = output / f"runs.{form}"
    assert main([f"out={path}", f"output={output}", "published=false"]) == 0
    assert f"Runs: {path} (4 rows, " in capsys.readouterr().out
    read = {"parquet": pd.read_parquet, "csv": pd.read_csv, "json": pd.read_json}[form](
        path
    )
    read = read.set_index("id")
    assert sorted(read.kind) == ["result", "result", "result", "trial"]
    of = read[(read.row == "vera") & (read.task == "rte")].sort_values("seed")
    assert of.value.tolist() == pytest.approx([80.0, 90.0])
    assert of["config.train.lr"].tolist() == [0.01, 0.01]
    assert of.deviations.tolist()[1] == "a; b"
    content = path.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        main([f"out={path}", f"output={output}", "published=false"])
    assert path.read_bytes() == content
    assert read.label[read.row == "lora"].tolist() == [
        "'=1+1" if form == "csv" else "=1+1"
    ]


def test_the_command_prints_a_part_as_csv_or_says_in_one_line_why_not(output, capsys):
    assert main([f"output={output}", "published=false", "task=mrpc"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.startswith("id,status,kind,model,row,task,seed,label")
    assert ",trial," in line
    for words, why in (
        ("out=runs.xlsx", r"^out=runs.xlsx: .* .parquet, .csv, .json"),
        ("task=x", "^no records of"),
    ):
        with pytest.raises(UserError, match=why):
            main([words, f"output={output}", "published=false"])
