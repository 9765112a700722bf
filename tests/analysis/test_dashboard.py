"""The workspace of Weights & Biases for the tables."""

import json

import pytest
import wandb
from ledgers import ledger, record
from running import call
from servers import NOBODY, logged_in

from analysis import dashboard
from runs.command.errors import UserError
from runs.record.ledger import write_record
from runs.tracking.content import epoch_points

pytestmark = pytest.mark.properties


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for key in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


def of_demo(*seeds):
    return ledger(*(record("vera", "reviews", seed, model="minilm") for seed in seeds))


@pytest.mark.slow
def test_the_workspace_has_the_tables_with_runs_and_a_curve_of_each_model_and_task():
    found = of_demo(0, 1)
    assert dashboard.logged_tables(ledger()) == {}
    ((key, demo),) = dashboard.logged_tables(found).items()
    assert key == "tables/demo"
    assert any("80.0" in cell for row in demo.texts for cell in row)
    made = dashboard.workspace(
        found, dashboard.logged_tables(found), "me", "vera-bench"
    )
    spec = made._to_model().spec.model_dump(
        mode="json", by_alias=True, exclude_none=True
    )["section"]
    (title, panel), (curve,) = (
        section["panels"] for section in spec["panelBankConfig"]["sections"]
    )
    assert title["config"]["value"] == demo.title
    assert '"tables/demo"' in json.dumps(panel)
    # One group a cell, by the median; trials are left out, as from the tables.
    assert (curve["config"]["groupBy"], curve["config"]["groupAgg"]) == (
        "group",
        "median",
    )
    (runs,) = spec["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == (
        "tags",
        "NIN",
        ["trial"],
    )
    # A panel that asks for another name than a run logs would stay empty
    (done,) = of_demo(0)
    done["curve"]["step"] = [1, 2, 3]
    sent = epoch_points(done["curve"], done["result"]["metric"], "cells/minilm/reviews")
    assert {*curve["config"]["metrics"], "epoch"} <= {
        name for point in sent for name in point
    }


@pytest.mark.usefixtures("process")
def test_errors_are_one_line(monkeypatch):
    wandb.teardown()  # it would remember another test's server
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(UserError, match="Run `wandb login`, or set WANDB_API_KEY"):
        dashboard.main([])
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    with pytest.raises(UserError, match=r"cannot be reached \(.*refused\)"):
        dashboard.main([])
    monkeypatch.setattr(dashboard, "check_account", lambda: None)
    monkeypatch.setattr(
        dashboard,
        "save_workspace",
        lambda *_: (_ for _ in ()).throw(RuntimeError("no such team\nmore")),
    )
    with pytest.raises(
        UserError, match=r"the dashboard was not saved \(no such team\)$"
    ):
        dashboard.main([])


@pytest.mark.usefixtures("process")
def test_it_is_saved_and_saved_again_in_the_same_place(tmp_path):
    """In processes of their own: wandb keeps an address for the life of one."""
    write_record(tmp_path / "outputs", record())
    with logged_in() as server:
        words = "analysis.dashboard", f"output={tmp_path / 'outputs'}", "project=p"
        said = [call(*words, check=0).stdout for _ in range(2)]
    saved = [told["variables"] for told in server.told if "upsertView" in told["query"]]
    assert [view.get("id") for view in saved] == [None, "VjE="]
    assert (saved[0]["entityName"], saved[0]["projectName"]) == ("me", "p")
    assert said[0] == said[1]
    assert said[0].startswith(f"Dashboard: {server.url}/me/p?nw=")
    assert said[0].count("\n") == 1
    assert "Table 2, RoBERTa-base: GLUE dev sets" in saved[1]["spec"]
    # The tables: both times in the same run.
    logged = [
        told["variables"] for told in server.told if "upsertBucket" in told["query"]
    ]
    assert {(run["name"], run["project"]) for run in logged} == {
        (dashboard.TABLES_RUN, "p")
    }
    assert logged[0]["jobType"] == "tables"
    lines = [
        json.loads(line)
        for _, body in server.streams
        for line in body.get("files", {})
        .get("wandb-history.jsonl", {})
        .get("content", [])
    ]
    assert [line["tables/table2_1"]["_type"] for line in lines] == ["table-file"] * 2
    assert {line["tables/table2_1"]["nrows"] for line in lines} != {0}
