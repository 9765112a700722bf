"""The workspace of Weights & Biases for the tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from ledgers import ledger, record
from wandb_server import good, refusing

from analysis import dashboard, tables
from analysis.frame import runs as runs_of
from analysis.paper import GLUE
from runs.errors import UserError
from runs.record import write_record
from runs.tracking import points, summary_of

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


def of_demo(*seeds):
    return ledger(*(record("vera", "reviews", seed, model="minilm") for seed in seeds))


def sections_of(found):
    spec = dashboard.spec(dashboard.workspace(found, "me", "vera-bench"))["spec"]["section"]
    return {section["name"]: section for section in spec["panelBankConfig"]["sections"]}, spec


def names_in(section):
    """The names of logged numbers that a section's panels show."""
    configs = [panel["config"] for panel in section["panels"][1:]]
    names = [name for config in configs for name in (*config.get("metrics", []), config.get("yAxis"))]
    return [name.removeprefix("summary:") for name in names if name]


DEMO = "reviews (MiniLM, median over the seeds there are): dev accuracy"


def test_every_table_has_a_section_with_its_own_tasks_and_the_table_from_the_records():
    sections, spec = sections_of(of_demo(0))
    frame = runs_of(of_demo(0))
    made = [table for name in tables.TABLES for table in tables.made(name, frame) if table.tasks]
    # Logged tables; 2 of table 2, 2 of 3, 4 of 4, 2 of 5, 3 of 6, 7, 12, 13, demo; 1 and 8 to 11 show no run
    assert list(sections) == ["Tables from records", *(table.title for table in made)]
    assert len(sections) == 1 + 17
    base, demo = sections["Table 2, RoBERTa-base: GLUE dev sets"], sections[DEMO]
    curves = [name for name in names_in(base) if name.endswith("/dev")]
    assert curves == [f"cells/roberta_base/{task}/dev" for task in GLUE]
    assert "cells/gpt2_medium/e2e/rouge_l" in names_in(sections["Table 3, GPT-2 medium: E2E NLG"])
    assert (demo["isOpen"], base["isOpen"]) == (True, False)
    words = demo["panels"][0]["config"]["value"]
    assert "80.0 |" in words
    assert "`python -m analysis.tables demo`" in words
    # One group a cell, by the median; trials are left out, as from the tables.
    for panel in (p["config"] for s in sections.values() for p in s["panels"] if "metrics" in p["config"]):
        assert (panel["groupBy"], panel["groupAgg"]) == ("group", "median")
    (runs,) = spec["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("tags", "NIN", ["trial"])


def test_a_panel_asks_for_what_a_run_logs():
    """The names on both sides: a panel that asks for another one would stay empty."""
    (done,) = of_demo(0)
    done["curve"]["step"] = [1, 2, 3]
    cell = f"cells/{done['cell']['model']}/{done['cell']['task']}"
    sent = points(done["curve"], done["result"]["metric"], cell)
    logged = set(summary_of(done)) | {name for point in sent for name in point}
    asked = set(names_in(sections_of(of_demo(0))[0][DEMO]))
    assert asked
    assert asked | {"epoch", "parameters/adapter"} <= logged


def test_json_needs_no_network_and_no_login(tmp_path, capsys):
    file = tmp_path / "dashboard.json"
    assert dashboard.main([f"json={file}", "entity=team"]) == 0
    assert json.loads(file.read_text())["entity"] == "team"
    assert capsys.readouterr().out == f"Dashboard: {file}\n"
    assert dashboard.main(["json=-"]) == 0
    assert json.loads(capsys.readouterr().out)["project"] == "vera-bench"


def test_json_has_the_tables_that_would_be_logged(tmp_path, capsys):
    """Those with numbers of records, as texts; the workspace has a panel for each."""
    assert dashboard.logged_tables(ledger()) == {}
    ((key, demo),) = dashboard.logged_tables(of_demo(0, 1)).items()
    assert key == "tables/demo"
    assert {len(row) for row in demo["data"]} == {len(demo["columns"])}
    assert any("80.0" in cell for row in demo["data"] for cell in row)
    title, panel = sections_of(of_demo(0, 1))[0]["Tables from records"]["panels"]
    assert title["config"]["value"] == demo["title"]
    assert '"tables/demo"' in json.dumps(panel)
    write_record(tmp_path / "outputs", record())
    assert dashboard.main(["json=-", f"output={tmp_path / 'outputs'}"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tables"]) == ["tables/table2_1"]


@pytest.mark.usefixtures("process")
def test_errors_are_one_line(monkeypatch):
    wandb.teardown()  # it would remember another test's server
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(UserError, match="Run `wandb login`, or set WANDB_API_KEY"):
        dashboard.main([])
    monkeypatch.setattr(wandb, "login", lambda **_: True)
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
    write_record(tmp_path / "outputs", record())
    with good() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        command = [sys.executable, "-m", "analysis.dashboard", f"output={tmp_path / 'outputs'}", "project=p"]
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
