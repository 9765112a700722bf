"""The workspace of Weights & Biases for the tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ledgers
import pytest
from ledgers import of_metric
from wandb_server import good, refusing

from analysis import dashboard, tables
from analysis.frame import runs as runs_of
from analysis.paper import GLUE
from runs.errors import UserError
from runs.record import SCHEMA, Ledger, write_record
from runs.tracking import account
from runs.tracking.payload import points_of, summary_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")  # its own affair


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for key in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", refusing())
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


def record(task="reviews", model="minilm", row="vera", seed=0):
    both = {"best": 0.8, "best_epoch": 1.0, "last": 0.7}
    return {
        "schema": SCHEMA,
        "id": f"{model}-{row}-{task}-{seed}",
        "status": "done",
        "error": None,
        "cell": {"paper": None, "row": row, "model": model, "task": task, "seed": seed},
        "label": {"row": row, "model": "MiniLM", "task": "reviews"},
        "config": {
            "model": {"name": model, "path": "m"},
            "task": {"name": task},
            "method": {"kind": row},
            "train": {"epochs": 3},
            "seed": seed,
        },
        "recipe": {"name": "r"},
        "model": "hash",
        "data": {"content": "hash", "train_rows": 10, "dev_rows": 5},
        "parameters": {"adapter": 7680, "head": 10, "formula": 7680},
        "curve": {
            "epoch": [1.0, 2.0],
            "step": [1, 2],
            "train_loss": [0.5, 0.4],
            "metric": [0.8, 0.7],
            "metric_select": [0.8, 0.7],
            "metric_report": [0.8, 0.7],
        },
        "result": {
            **of_metric("accuracy"),
            "select": "paper",
            **both,
            "protocols": {"paper": both, "crossfit": {}},
        },
        "cost": {"train_seconds": 1.0, "evaluate_seconds": 1.0, "adapter_bytes": 1, "peak_memory_bytes": 1},
        "deviations": [],
    }


def ledger_of(*records):
    return Ledger({r["id"]: r for r in records}, {r["id"]: "ours" for r in records})


def sections_of(ledger):
    spec = dashboard.spec(dashboard.workspace(ledger, "me", "vera-bench"))["spec"]["section"]
    return {section["name"]: section for section in spec["panelBankConfig"]["sections"]}, spec


def names_in(section):
    """The names of logged numbers that a section's panels show."""
    configs = [panel["config"] for panel in section["panels"][1:]]
    names = [name for config in configs for name in (*config.get("metrics", []), config.get("yAxis"))]
    return [name.removeprefix("summary:") for name in names if name]


def test_every_table_has_a_section_with_its_own_tasks():
    ledger = ledger_of(record())
    sections, spec = sections_of(ledger)
    made = [table for name in tables.TABLES for table in tables.made(name, runs_of(ledger)) if table.tasks]
    assert list(sections) == ["Tables from records", *(table.title for table in made)]
    # Logged tables; 2 of table 2, 2 of 3, 4 of 4, 2 of 5, 3 of 6, 7, 12, 13, demo; 1 and 8 to 11 show no run
    assert len(sections) == 1 + 17
    base = sections["Table 2, RoBERTa-base: GLUE dev sets"]
    assert [f"cells/roberta_base/{task}/dev" for task in GLUE] == [
        n for n in names_in(base) if n.endswith("/dev")
    ]
    assert "cells/gpt2_medium/e2e/rouge_l" in names_in(sections["Table 3, GPT-2 medium: E2E NLG"])
    assert "cells/vit_base/food101/last" in names_in(
        sections["Table 5, ViT-B/16: 10 training images a class"]
    )
    demo = sections["reviews (MiniLM, median over the seeds there are): dev accuracy"]
    assert demo["isOpen"]
    assert not base["isOpen"]
    # One group a cell, by the median; trials are left out, as from the tables.
    for panel in (p["config"] for s in sections.values() for p in s["panels"] if "metrics" in p["config"]):
        assert (panel["groupBy"], panel["groupAgg"]) == ("group", "median")
    (runs,) = spec["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("tags", "NIN", ["trial"])


def test_a_panel_asks_for_what_a_run_logs():
    """The names on both sides: a panel that asks for another one would stay empty."""
    done = record()
    logged = set(summary_of(done)) | {name for point in points_of(done) for name in point}
    sections, _ = sections_of(ledger_of(done))
    demo = next(section for name, section in sections.items() if name.startswith("reviews"))
    assert names_in(demo)
    assert set(names_in(demo)) <= logged
    assert {"epoch", "parameters/adapter"} <= logged


def test_each_section_holds_the_table_from_the_records():
    sections, _ = sections_of(ledger_of(record()))
    demo = next(section for name, section in sections.items() if name.startswith("reviews"))
    words = demo["panels"][0]["config"]["value"]
    assert "|     80.0 |" in words
    assert "`python -m analysis.tables demo`" in words
    assert "Numbers for a paper come from the records" in words


def test_json_needs_no_network_and_no_login(tmp_path, capsys):
    file = tmp_path / "dashboard.json"
    assert dashboard.main([f"json={file}", "entity=team"]) == 0
    assert json.loads(file.read_text())["entity"] == "team"
    assert capsys.readouterr().out == f"Dashboard: {file}\n"
    assert dashboard.main(["json=-"]) == 0
    assert json.loads(capsys.readouterr().out)["project"] == "vera-bench"


def test_json_has_the_tables_that_would_be_logged(tmp_path, capsys):
    """Those with numbers of records, as texts; the workspace has a panel for each."""
    assert dashboard.logged_tables(ledger_of()) == {}
    ledger = ledger_of(record(), record(seed=1))
    tables = dashboard.logged_tables(ledger)
    assert list(tables) == ["tables/demo"]
    demo = tables["tables/demo"]
    assert {len(row) for row in demo["data"]} == {len(demo["columns"])}
    assert any("80.0" in cell for row in demo["data"] for cell in row)
    sections, _ = sections_of(ledger)
    section = sections["Tables from records"]
    assert section["isOpen"]
    titles, (panel,) = section["panels"][::2], section["panels"][1::2]
    assert [title["config"]["value"] for title in titles] == [demo["title"]]
    assert '"tables/demo"' in json.dumps(panel)
    write_record(tmp_path / "outputs", ledgers.record())
    assert dashboard.main(["json=-", f"output={tmp_path / 'outputs'}"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tables"]) == ["tables/table2_1"]


@pytest.mark.usefixtures("process")
def test_errors_are_one_line(monkeypatch):
    monkeypatch.setattr(account, "base_url", lambda: os.environ["WANDB_BASE_URL"])
    monkeypatch.setattr(account, "logged_in", lambda: False)
    with pytest.raises(UserError, match="Run `wandb login`, or set WANDB_API_KEY"):
        dashboard.main([])
    monkeypatch.setattr(account, "logged_in", lambda: True)
    with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\)"):
        dashboard.main([])
    monkeypatch.setattr(dashboard, "check_account", lambda: None)
    monkeypatch.setattr(
        dashboard, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("no such team\nmore"))
    )
    with pytest.raises(UserError, match=r"the dashboard was not saved \(no such team\)$"):
        dashboard.main([])


@pytest.mark.usefixtures("process")
def test_it_is_saved_and_saved_again_in_the_same_place(monkeypatch, tmp_path):
    """In processes of their own: wandb keeps an address for the life of one."""
    write_record(tmp_path / "outputs", ledgers.record())
    with good() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        command = [
            sys.executable,
            "-m",
            "analysis.dashboard",
            f"output={tmp_path / 'outputs'}",
            "project=p",
        ]
        said = [
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=90).stdout
            for _ in range(2)
        ]
    saved = [told["variables"] for told in server.told if "upsertView" in told["query"]]
    assert [view.get("id") for view in saved] == [None, "VjE="]
    assert (saved[0]["entityName"], saved[0]["projectName"]) == ("me", "p")
    assert said[0] == said[1]
    assert said[0].startswith(f"Dashboard: {server.url}/me/p?nw=")
    assert said[0].count("\n") == 1
    sections = json.loads(saved[1]["spec"])["section"]["panelBankConfig"]["sections"]
    assert "Table 2, RoBERTa-base: GLUE dev sets" in [section["name"] for section in sections]
    # The tables: both times in the same run.
    logged = [told["variables"] for told in server.told if "upsertBucket" in told["query"]]
    assert {(run["name"], run["project"]) for run in logged} == {(dashboard.TABLES_RUN, "p")}
    assert logged[0]["jobType"] == "tables"
    lines = [
        json.loads(line)
        for _, body in server.streams
        for line in body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
    ]
    assert [line["tables/table2_1"]["_type"] for line in lines] == ["table-file"] * 2
    assert {line["tables/table2_1"]["nrows"] for line in lines} != {0}


@pytest.mark.usefixtures("process")
def test_tables_do_without_wandb():
    code = (
        "import analysis.tables, analysis.dashboard, sys; sys.exit('wandb' in sys.modules or 'torch' in"
        " sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
