"""A user's own runs in tables: before the published ones, with their deviations, each
variant on request."""

import pytest
from ledgers import ledger, notes, record, seed_records

from analysis import tables
from analysis.command import open_ledger, own_and_published, select_records
from analysis.frame import cells, runs
from analysis.notes import deviation_notes
from analysis.notes import notes as notes_of
from analysis.tables.__main__ import main
from runs.command.errors import UserError
from runs.record.ledger import run_folder, write_record, write_study
from runs.record.sweeps import write_sweep

pytestmark = pytest.mark.properties


def of_study(both, *records):
    for one in records:
        both.origin[one["id"]] = "a_study"
    return both


def publish(folder, monkeypatch, records):
    """Publishes records as a study below a folder."""
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", folder / "studies")
    write_study(folder / "studies" / "a_study", records)


def test_a_run_that_is_published_too_is_in_both_with_its_own_number(
    tmp_path, monkeypatch
):
    theirs = seed_records("vera", "mrpc", model="minilm")
    publish(tmp_path, monkeypatch, theirs)
    mine = record("vera", "mrpc", 0, 0.5, model="minilm")
    assert mine["id"] == theirs[0]["id"]
    write_record(tmp_path, mine)
    first, last = tables.tables_of_ledger(
        "table2", open_ledger(str(tmp_path)), models=["minilm"]
    )
    assert first.texts[0][3] == "50.0 (1/5)"
    assert last.texts[0][3] == "78.7 +-1.1"  # not without the seed that was run here


def test_a_run_that_is_published_too_is_in_no_table_of_another_task():
    """Both of its records are filtered, not this machine's alone."""
    mine, theirs = record("vera", "reviews", 0), record("vera", "reviews", 0)
    both = ledger(mine, *seed_records("lora", "mrpc"))
    both.published = {theirs["id"]: ("a_study", theirs)}
    both.origin = dict.fromkeys(both.records, "ours")
    chosen = select_records(both, lambda one, _: one["cell"]["task"] == "mrpc")
    assert [{*of.task} for of in own_and_published(chosen)] == [{"mrpc"}, set()]
    (table,) = tables.tables_of_ledger("", chosen)
    assert table.header == ["method", "source", "params", "mrpc", "s/run", "adapter"]
    assert set(
        select_records(both, lambda one, _: one["id"] == theirs["id"]).published
    ) == {theirs["id"]}


def test_every_variant_is_a_row_that_says_what_sets_it_apart():
    usual = seed_records("vera", "mrpc", bests=(0.8, 0.82), model="minilm")
    other = seed_records(
        "vera",
        "mrpc",
        bests=(0.6,),
        model="minilm",
        lr=0.5,
        deviations=["lr 0.5 instead of 0.01"],
    )
    both = ledger(*usual, *other)
    (shown,) = tables.tables_of_ledger("table2", both, models=["minilm"])
    assert len(shown.rows) == 1
    assert "all=true" in notes(shown)
    (shown,) = tables.tables_of_ledger(
        "table2", both, all_variants=True, models=["minilm"]
    )
    rows = [(row[0], row[3]) for row in shown.texts]
    assert rows == [
        ("VeRA r=1024, lr 0.01", "81.0 +-1.4 (2/5)"),
        ("VeRA r=1024, lr 0.5", "60.0 (1/5)"),
    ]
    assert "all=true" not in notes(shown)
    # On the paper's model the nearest to the recipe stays beside the paper's row,
    # whatever else there is.
    base = ledger(
        *seed_records("vera", "mrpc"),
        *seed_records("vera", "mrpc", lr=0.5, deviations=["lr"]),
    )
    (shown,) = tables.tables_of_ledger(
        "table2", base, all_variants=True, models=["roberta_base"]
    )
    rows = [(row[0], row[1]) for row in shown.texts]
    at = rows.index(("VeRA", "paper"))
    assert rows[at + 1 : at + 3] == [
        ("VeRA r=1024, lr 0.01", "ours"),
        ("", "difference"),
    ]
    assert rows[-1] == ("VeRA r=1024, lr 0.5", "ours")


def test_published_runs_on_models_that_did_not_run_here_are_left_out_with_a_note():
    own = seed_records("vera", "mrpc", model="minilm")
    theirs = [
        *seed_records("lora", "mrpc", model="minilm"),
        *seed_records("vera", "mrpc", model="mpnet_base"),
    ]
    both = of_study(ledger(*own, *theirs), *theirs)
    shown = tables.tables_of_ledger("table2", both, own_models_only=True)
    models = [(table.model, "(published)" in table.title) for table in shown]
    assert models[:2] == [("minilm", False), ("roberta_base", False)]
    assert models[-1] == ("minilm", True)
    assert "mpnet_base" not in [model for model, _ in models]
    assert "published runs on mpnet_base (model=mpnet_base shows" in notes(shown[0])
    # Who has no run of this table sees all that is published.
    nothing = of_study(ledger(*theirs), *theirs)
    shown = tables.tables_of_ledger("table2", nothing, own_models_only=True)
    assert {"minilm", "mpnet_base"} <= {table.model for table in shown}


def test_the_papers_rows_are_those_of_the_methods_that_are_asked_for():
    (everything,) = tables.tables_of_ledger(
        "table2", ledger(*seed_records("vera", "mrpc")), models=["roberta_base"]
    )
    (shown,) = tables.tables_of_ledger(
        "table2",
        ledger(*seed_records("vera", "mrpc")),
        models=["roberta_base"],
        methods=["vera"],
    )
    quoted = [row[0] for row in shown.texts if row[1] == "paper"]
    assert quoted == ["VeRA"]
    assert {"VeRA", "full"} < {row[0] for row in everything.texts}


def test_the_table_of_a_sweep_shows_each_variant_of_own_rows():
    own = [
        *seed_records("vera", "mine", (0.5,), lr=0.3),
        *seed_records("vera", "mine", (0.6,), lr=0.2),
    ]
    theirs = [
        *seed_records("vera", "mine", (0.7, 0.8), lr=0.1),
        *seed_records("vera", "mine", (0.9,), lr=0.4),
    ]
    both = of_study(ledger(*own, *theirs), *theirs)
    for every, rows in ((False, 1), (True, 2)):
        first, last = tables.tables_of_ledger(
            "", both, all_variants=every, all_own_variants=True
        )
        assert [row[0] for row in first.texts] == [
            "VeRA r=1024, lr 0.2",
            "VeRA r=1024, lr 0.3",
        ]
        assert len(last.rows) == rows
        assert ("all=true" in notes(last)) is not every


def test_a_sweep_counts_what_has_run_here_and_shows_no_copy_as_its_own(
    tmp_path, monkeypatch, capsys
):
    """Though the project has published the same runs, and one of another sweep that was
    done here, too."""
    made = seed_records("vera", "mine", (0.7, 0.8, 0.9), lr=0.1)
    publish(tmp_path, monkeypatch, made)
    for one in (made[0], own := record("vera", "mine", 0, 0.6, lr=0.2)):
        write_record(tmp_path, one)
        # Without it a record is a copy of the published one
        run_folder(tmp_path, one["id"]).mkdir(parents=True, exist_ok=True)
    for ids, missing, sources in (
        ([one["id"] for one in made[1:]], 2, ["published"]),
        ([one["id"] for one in made], 2, ["ours", "published"]),
        ([own["id"]], 0, ["ours", "published"]),
    ):
        write_sweep(tmp_path, "mine", ids)
        assert main(["sweep=mine", f"output={tmp_path}"]) == 0
        told = capsys.readouterr()
        assert (
            f"note: {missing} of the {len(ids)} runs of mine have no" in told.err
        ) is bool(missing)
        shown = [
            line.split("|")[2].strip()
            for line in told.out.splitlines()
            if "VeRA" in line
        ]
        assert shown == sources


def test_runs_that_no_table_shows_come_with_the_command_that_reads_them(tmp_path):
    folds = seed_records("vera", "mine", (0.7, 0.8, 0.9))
    for number, fold in enumerate(folds):
        fold["config"]["task"] |= {"folds": 3, "fold": number}
    trial = record("vera", "yours", lr=1)
    trial["config"]["task"]["holdout"] = 0.2
    for made in (*folds, trial):
        write_record(tmp_path, made)
    own = ["published=false", f"output={tmp_path}"]
    first = min(fold["id"] for fold in folds)
    message = (
        rf"3 fold runs \(task.folds\), from which vera-bench mistakes {first} lists "
        "labels that may be wrong$"
    )
    with pytest.raises(UserError, match=message):
        main(["task=mine", *own])
    message = r"1 trial \(task.holdout\), which vera-bench tune reads$"
    with pytest.raises(UserError, match=message):
        main(["task=yours", *own])


def begin(output, run_id, model, task):
    """What a run that was interrupted leaves."""
    folder = run_folder(output, run_id)
    (folder / "attempts").mkdir(parents=True)
    config = f"model: {{name: encoder, path: /a/{model}}}\ntask: {{name: {task}}}\n"
    (folder / "config.yaml").write_text(config)
    (folder / "overrides.yaml").write_text(f"[method=vera, task={task}, seed=7]\n")


def test_runs_that_stopped_before_their_end_are_counted_with_what_continues_them(
    tmp_path, capsys
):
    """Not those of another model or task, nor what has a record or cannot be read."""
    finished = seed_records("vera", "mine", (0.7, 0.8), model="encoder")
    for made in finished:
        made["config"]["model"]["path"] = "/a/tiny"
        write_record(tmp_path, made)
    own = ["task=mine", "published=false", f"output={tmp_path}"]

    def shown():
        main(own)
        return capsys.readouterr().out

    begin(tmp_path, finished[0]["id"], "tiny", "mine")
    begin(tmp_path, "b" * 12, "other", "mine")
    begin(tmp_path, "c" * 12, "tiny", "yours")
    begin(tmp_path, "d" * 12, "tiny", "mine")
    (run_folder(tmp_path, "d" * 12) / "config.yaml").write_text("{")
    assert "stopped before" not in shown()
    begin(tmp_path, "e" * 12, "tiny", "mine")
    words = "vera-bench method=vera task=mine seed=7 continues."
    line = f"Without 1 run that stopped before the end (or train now): {words}"
    assert line in shown().splitlines()
    begin(tmp_path, "f" * 12, "tiny", "mine")
    line = "Without 2 runs that stopped before the end (or train now): the same command"
    assert f"{line} continues." in shown().splitlines()


def test_a_large_share_of_a_small_model_is_no_difference_from_the_recipe():
    stored = "trains 8.6% of the model's parameters (4,224), as no small adapter does"
    own = seed_records("vera", "mrpc", (0.7, 0.71), model="minilm", deviations=[stored])
    (table,) = tables.tables_of_ledger("table2", ledger(*own), models=["minilm"])
    assert "Differs from" not in notes(table)
    shown = "(4,224): a large share, but no deviation"
    assert any(
        line.startswith("Note: ") and shown in line and "(vera on mrpc)" in line
        for line in table.notes
    )


def test_the_command_shows_a_part_and_refuses_what_there_is_not_in_one_line(
    tmp_path, capsys
):
    own = ["published=false", f"output={tmp_path}"]
    with pytest.raises(
        UserError, match=r"no records of demo in .*records yet \(make demo\)$"
    ):
        main(["demo", *own])
    assert main(["table2", *own]) == 0  # the paper's own rows
    assert "note: no records of your own in" in capsys.readouterr().err
    stopped = record("vera", "reviews", model="vit_base")
    stopped["config"]["train"]["max_steps"] = 1
    for one in (
        stopped,
        record("vera", "mrpc"),
        *seed_records("vera", "mrpc", (0.7, 0.8, 0.9), model="minilm"),
    ):
        write_record(tmp_path, one)
    assert main(["table2", "model=minilm", "seed=0,2", *own]) == 0
    assert " 80.0 +-14.1 (2/5) |" in capsys.readouterr().out
    assert main(["table2", "model=minilm", "seed=range(0,3,2)", *own]) == 0
    assert " 80.0 +-14.1 (2/5) |" in capsys.readouterr().out
    # with fewer seeds than the paper's, a complete cell still says how many it has
    assert main(["table2", "model=minilm", "seed=0,2", "seeds=2", *own]) == 0
    assert " 80.0 +-14.1 (2) |" in capsys.readouterr().out
    # of the paper's columns, too
    assert main(["table2", "model=roberta_base", "task=mrpc", *own]) == 0
    assert "| VeRA | paper | 0.043M | 89.5 +-0.5 | quoted |" in " ".join(
        capsys.readouterr().out.split()
    )
    # and of a model and a task without records
    assert main(["table2", "model=roberta_large", "task=rte,cola", *own]) == 0
    printed = capsys.readouterr()
    assert "Table 2, RoBERTa-large" in printed.out
    assert "note: no records of model 'roberta_large' yet" in printed.err
    assert "note: no records of task 'cola' yet" in printed.err
    for words, refusal in {
        "model=roberta_large": "no records of model 'roberta_large'",
        "table2 model=roberta_large against=vera": "no records of model 'roberta_large'",
        "task=mrcp": r"no records of task 'mrcp'. Did you mean mrpc\?",
        "demo method=peft:IA33Config": "no records of method 'peft_ia33'",
        "sweep=nine": "no sweep 'nine' in .*/sweeps. There are: none",
        "table4 model=minilm": "no records of minilm for table4 in .*records yet$",
        # none that would be in it
        "table2 model=vit_base": "no records of vit_base for table2 in",
        "demo model=vit_base": f"^no finished run in .* for demo: stopped early .*{stopped['id']}",
        "table8 model=minilm": "table8 has no records: model=, task=, .* choose nothing in it",
        "": "name a table .*, or task=",
    }.items():
        with pytest.raises(UserError, match=refusal):
            main([*words.split(), *own])


def test_own_runs_that_deviate_stand_first_and_say_how():
    own = seed_records(
        "vera",
        "mrpc",
        (0.7, 0.71),
        model="minilm",
        deviations=["epochs 1 instead of 40"],
        lr=1,
    )
    theirs = seed_records("vera", "mrpc", model="minilm")
    both = of_study(ledger(*own, *theirs), *theirs)
    first, last = tables.tables_of_ledger("table2", both, models=["minilm"])
    assert first.texts[0][:4] == ["VeRA r=1024", "ours", "43,008", "70.5 +-0.7 (2/5)"]
    assert (
        "Differs from the paper: epochs 1 instead of 40 (vera on mrpc)." in first.notes
    )
    assert last.title.endswith("(published)")
    assert last.texts[0][1:4] == ["published", "43,008", "78.7 +-1.1"]
    assert "Published by the project in runs/records: 5 of a_study." in notes(last)
    assert "Left out: the paper's rows (model=minilm,roberta_base shows" in notes(first)
    assert "further from the recipe" not in notes(first) + notes(last)
    assert (
        tables.tables_of_ledger("table2", ledger(*own), models=["minilm"])[0].texts
        == first.texts
    )


def test_a_rank_that_a_rows_name_says_is_no_deviation_and_a_part_of_the_data_is_one():
    named = record("lora_r64", deviations=["rank 64 instead of the recipe's 8"])
    part, told = (
        record("head"),
        record("full", deviations=["train: 10 rows (a fixed subset of 99)"]),
    )
    for one in (part, told):
        one["config"]["task"]["train_rows"] = 10
    both = cells(
        runs(ledger(named, record(deviations=["rank 64 instead of 8"]), part, told))
    )
    words = [
        "rank 64 instead of 8 (vera on rte)",
        f"{told['deviations'][0]} (full on rte)",
        "trained on 10 rows and evaluated on 10 (head on rte)",
    ]
    assert deviation_notes(both) == words


def test_what_holds_for_every_row_of_a_task_is_said_once():
    small = {"deviations": ["images of 112 pixels"]}
    rows = [
        *(record(row, "digits", **small) for row in ("vera", "lora")),
        *(record(row, "rte") for row in ("vera", "lora")),
    ]
    of_cells = cells(runs(ledger(*rows)))
    assert deviation_notes(of_cells) == ["images of 112 pixels (all rows on digits)"]
    assert deviation_notes(of_cells[of_cells.task == "digits"]) == [
        "images of 112 pixels (all rows)"
    ]


def test_rows_that_were_not_measured_on_the_same_have_columns_of_their_own():
    bitfit = seed_records("bitfit")
    made = [*seed_records("vera"), *seed_records("lora"), *bitfit]
    assert {*cells(runs(ledger(*made))).measurement_text} == {""}
    for one in bitfit:
        one["data"]["dev_rows"] = 20
        one["config"]["train"]["evaluate_every"] = 3  # of three epochs
    texts = ["10 dev rows, best epoch", "20 dev rows, last epoch"]
    for order in (made, made[::-1]):
        apart = cells(runs(ledger(*order))).set_index("row").measurement_text
        assert apart[["vera", "lora", "bitfit"]].tolist() == [texts[0]] * 2 + texts[1:]
        # In CSV both columns belong to the task.
        (table,) = tables.tables_of_ledger("", ledger(*order))
        headers = [f"RTE, {text}" for text in texts]
        assert table.header[3:5] == headers
        assert [row[3:5].count("-") for row in table.texts] == [1, 1, 1]
        assert set(table.tidy().query("column in @headers").task) == {"rte"}
    for one in bitfit:
        one["data"] |= {"dev_rows": 10, "content": "sha256:other"}
        del one["config"]["train"]["evaluate_every"]
    apart = cells(runs(ledger(*made))).set_index("row").measurement_text
    assert apart[["vera", "bitfit"]].tolist() == ["data hash", "data other"]


@pytest.mark.parametrize(
    ("part", "uncommitted", "versions", "imports", "told"),
    [
        (
            "method",
            True,
            "aab",
            "ccc",
            "its seeds ran with 2 versions of mine.py or its imports: 0, 1 | 2",
        ),
        (
            "task",
            None,
            "aba",
            "ccc",
            "its seeds ran with 2 versions of mine.py or its imports: 0, 2 | 1",
        ),
        (
            "method",
            True,
            "aaa",
            "ccd",
            "its seeds ran with 2 versions of mine.py or its imports: 0, 1 | 2",
        ),
        # both are in commits that the records name
        ("method", False, "aab", "ccc", None),
        ("method", True, "aaa", "cc-", None),  # an older record, without imports
    ],
)
def test_seeds_of_a_file_that_changed_between_them_are_named(
    part, uncommitted, versions, imports, told
):
    made = seed_records("vera", "rte", (0.7, 0.8, 0.9))
    for one, version, imported in zip(made, versions, imports, strict=True):
        source = {
            "file": "mine.py",
            "sha256": version,
            "imports": imported,
            "uncommitted": uncommitted,
        }
        one["code"] = one["code"] | {
            "sources": {part: {k: v for k, v in source.items() if v != "-"}}
        }
    of = runs(ledger(*made))
    found = " ".join(notes_of(of, cells(of)))
    assert (f"vera on rte: {told}" in found) if told else "versions" not in found


def test_what_is_left_out_is_counted_and_named():
    """A run of an older protocol is not counted among those of other settings."""
    old = [record(seed=s) for s in range(3)]
    new = record(seed=3, best=0.5) | {"protocol": 2}
    other = record(seed=4, lr=0.5, deviations=["lr 0.5"]) | {"protocol": 2}
    failed = record(seed=9, status="failed")
    of = runs(ledger(*old, new, other, new | {"id": "zz again"}, failed))
    found = " ".join(notes_of(of, cells(of)))
    for told in (
        "Left out: 1 run with settings further from the recipe (all=true shows them)",
        "vera on rte: 3 runs of protocol 1, not mixed with those of 2",
        "further records of the same settings and seed: zz again",
        f"failed: {failed['id']} (VeRA r=1024 on RTE)",
    ):
        assert told in found


def test_a_run_that_was_stopped_early_is_named_once():
    """Also below published rows, and for a model that no table of own runs has."""

    def trials(task, count):
        made = seed_records("vera", task, bests=[0.7] * count, model="minilm")
        for one in made:
            one["config"]["train"]["max_steps"] = 3
        return made

    theirs = seed_records("vera", "mrpc", model="minilm", lr=0.3)
    own = [*trials("mrpc", 7), *trials("reviews", 1)]
    both = of_study(ledger(*own, *theirs), *theirs)
    for name, count in (("table2", 7), ("", 8)):
        found = " ".join(
            map(notes, tables.tables_of_ledger(name, both, models=["minilm"]))
        )
        assert (
            found.count(
                f"stopped early by train.max_steps: {count} runs (vera-bench report"
            )
            == 1
        )
        assert found.count("stopped early") == 1
    more = ledger(*own, *seed_records("lora", "mrpc", model="minilm"))
    (first,) = tables.tables_of_ledger("table2", more, models=["minilm"])
    assert notes(first).count("stopped early") == 1
    assert not any(
        "stopped" in notes(table) for table in tables.tables_of_ledger("table3", both)
    )
