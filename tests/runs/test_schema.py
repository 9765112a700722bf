"""A record is checked once, when it is read: what is none is named by every reader, and the rest is shown."""

import contextlib
import copy
import json
import os
import re
import signal

import pytest
from ledgers import record, seeds

from analysis import dashboard, stats
from analysis.figures.__main__ import main as figures_main
from analysis.report import main as report_main
from analysis.tables.__main__ import main as tables_main
from runs import evaluate, plan, publish
from runs.errors import UserError
from runs.export import __main__ as export
from runs.record import (
    FINISHED,
    read_ledger,
    read_record,
    record_path,
    record_text,
    study_folders,
    write_record,
)
from runs.record.schema import check

pytestmark = pytest.mark.properties


def changed(path, value):
    """A record with another value at a path such as curve.metric; ... takes the key out."""
    made = copy.deepcopy(record())
    *parents, key = path.split(".")
    place = made
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("status", ..., "status: field required"),
        ("status", "over", "status: input should be 'done', 'diverged' or 'failed'"),
        ("cell.seed", "0", "cell.seed: input should be a valid integer"),
        ("cell.seed", True, "cell.seed: input should be a valid integer"),
        ("cell", [], "cell: input should be a valid dictionary"),
        ("result", None, "result: input should be a valid dictionary"),
        ("curve.metric", 3, "curve.metric: input should be a valid list"),
        ("curve.metric", ["a", 0.5, 0.5], "curve.metric.0: input should be a valid number"),
        ("curve.metric", [0.5], "curve: columns differ in length"),
        ("cost.train_seconds", {}, "cost.train_seconds: input should be a valid number"),
        ("data.dev_rows", 0, "data.dev_rows: input should be greater than or equal to 1"),
        ("deviations", "none", "deviations: input should be a valid list"),
        ("deviations", [1], "deviations.0: input should be a valid string"),
        ("config", {}, "config.model: field required, and 5 more"),
        ("config.train", None, "config.train: input should be a valid dictionary"),
        ("config.method.rank", "NaN", "config.method.rank: a rank of vera is a whole number"),
        ("config.task.data_dir", [[]], "config.task.data_dir: input should be a valid string"),
        ("texts", 7, "texts: input should be a valid dictionary"),
        ("judged", [{"bench": "mt_bench"}], "judged.0.judge: field required, and 8 more"),
        ("parameters.adapter", -1, "parameters.adapter: input should be greater than or equal to 0"),
    ],
)
def test_a_record_of_another_shape_is_refused_in_one_line(path, value, says):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        check(changed(path, value))


def test_a_done_run_has_an_epoch_and_a_diverged_one_may_have_none():
    check(record(values=[], status="diverged"))
    with pytest.raises(ValueError, match="done, and without an epoch"):
        check(record(values=[]))


def test_a_failed_run_needs_no_more_than_its_name_and_error():
    made = record() | {"status": "failed", "error": "out of memory"}
    failed = {
        key: made[key] for key in ("schema", "id", "status", "error", "tries", "cell", "label", "config")
    }
    check(failed)
    check(made)
    with pytest.raises(ValueError, match=r"^curve: input should be a valid dictionary$"):
        check(failed | {"curve": 5})


def test_every_published_record_is_one():
    found = [read_record(path) for folder in study_folders() for path in folder.glob("*.json")]
    assert all(r["status"] in FINISHED for r in found)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    """Or a run of hours would be done again and again: its record would never count."""
    with pytest.raises(ValueError, match=r"curve\.metric\.0"):
        write_record(tmp_path, changed("curve.metric", [[], 0.5, 0.5]))
    with pytest.raises(ValueError, match="not JSON compliant"):
        record_text(changed("cost.train_seconds", float("nan")))
    assert not list(tmp_path.rglob("*.json"))
    write_record(tmp_path, record())
    assert read_record(record_path(tmp_path, record()["id"])) == record()


def test_parts_that_records_have_alike_are_kept_once(tmp_path):
    """Or a ledger of 100,000 records would need more memory than a laptop has."""
    for one in seeds():
        write_record(tmp_path, one)
    first, *others = read_ledger(tmp_path, published=False)
    for other in others:
        assert other["config"]["train"] is first["config"]["train"]
        assert other["versions"] is first["versions"]
        assert other["curve"]["metric"] is not first["curve"]["metric"]
        assert other["cell_id"] is first["cell_id"]
    assert [r | {"cell_id": None} for r in read_ledger(tmp_path, published=False)] == [
        r | {"cell_id": None} for r in sorted(seeds(), key=lambda r: r["id"])
    ]


def test_a_plan_reads_what_it_shows_and_a_sample_of_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr("runs.record.ledger.SAMPLE", 2)
    made = seeds()
    for age, one in enumerate(made):
        path = write_record(tmp_path, one)
        os.utime(path, (age, age))
    names = [one["id"] for one in made]
    assert set(read_ledger(tmp_path, published=False, wanted=[names[0], "absent"]).records) == {
        names[0],
        *names[3:],
    }
    assert set(read_ledger(tmp_path, published=False, wanted=[]).records) == set(names[3:])
    assert set(read_ledger(tmp_path, published=False).records) == set(names)


@pytest.fixture
def odd(tmp_path):
    """A folder of records with five seeds of a row, and beside them everything that is no record; and the odd
    ones' names."""
    for one in seeds():
        write_record(tmp_path, one)
    records = tmp_path / "records"
    shapes = {
        "bare": {"schema": 2},
        "statusless": changed("status", ...),
        "resultless": changed("result", None),
        "unconfigured": changed("config", []),
        "listed": changed("cell.seed", [1]),
        "curved": changed("curve.metric", "0.5"),
        "future": record() | {"schema": 99},
        "many": [record()],
        "nothing": None,
    }
    for name, shape in shapes.items():
        (records / f"{name}.json").write_text(
            json.dumps(shape | {"id": name} if isinstance(shape, dict) else shape)
        )
    with open(os.fsencode(records) + b"/\xff.json", "wb"):  # a name that is no text
        pass
    (records / "deep.json").write_text("[" * 100_000)
    (records / "large.json").write_text('{"schema": 2, "id": "large", "a": 1e999}')
    (records / "folder.json").mkdir()
    os.mkfifo(records / "pipe.json")
    (records / "device.json").symlink_to("/dev/zero")
    (records / "loop.json").symlink_to("loop.json")
    (records / "gone.json").symlink_to("nowhere")
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures" / "halved.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "id": "halved",
                "kind": "magnitude",
                "of": [{"id": "x"}],
                "settings": {},
                "seeds": {},
            }
            | {"values": {"layer": [0], "site": ["query"], "d": [0.1], "b": [0.1]}}
        )
    )
    names = [*shapes, r"\udcff", "deep", "large", "folder", "pipe", "device", "loop", "gone", "halved"]
    patience = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(120)
    yield tmp_path, names
    signal.alarm(0)
    signal.signal(signal.SIGALRM, patience)


def test_a_ledger_names_each_odd_file_once_and_keeps_the_rest(odd):
    folder, names = odd
    found = read_ledger(folder, published=False)
    assert sorted(found.records) == sorted(one["id"] for one in seeds())
    assert not found.measures
    assert len(found.problems) == len(names)
    for name in names:
        (problem,) = [problem for problem in found.problems if f"/{name}.json: " in problem]
        assert "\n" not in problem
        assert len(problem) < 300


@pytest.mark.parametrize(
    "command",
    [
        lambda output: tables_main(["table2", f"output={output}"]),
        lambda output: stats.main(["table2", f"output={output}"]),
        lambda output: figures_main(["all", f"output={output}"]),
        lambda output: report_main([f"output={output}"]),
        lambda output: dashboard.main([f"output={output}", f"json={output}/view.json"]),
        lambda output: plan.main(["task=rte", f"output={output}"]),
        lambda output: publish.main(["study", f"output={output}"]),
        lambda output: evaluate.main(["nowhere", f"output={output}"]),
        lambda output: export.main(["nowhere", "peft", f"{output}/there", f"output={output}"]),
    ],
    ids=["tables", "stats", "figures", "report", "dashboard", "plan", "publish", "evaluate", "export"],
)
@pytest.mark.usefixtures("undrawn")
def test_every_reader_names_the_odd_files_and_goes_on(odd, command, capsys, monkeypatch):
    folder, names = odd
    monkeypatch.setattr(publish, "PUBLISHED", folder / "published")
    with contextlib.suppress(UserError):  # no run of that name, and the like
        command(folder)
    said = "".join(capsys.readouterr())
    for name in names:
        assert f"{name}.json" in said, f"{name} is not named"
