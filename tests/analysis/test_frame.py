"""Records as frames: each number recomputed by hand, and what may never meet in one
cell."""

import itertools
import math
import random
import statistics

import pytest
from ledgers import cells_of, ledger, record, with_halves

import analysis
from analysis.frame import (
    CELL_KEY,
    cells,
    comparable_costs,
    runs,
)
from analysis.variants import every_variant
from runs.record.ledger import PUBLISHED, read_study

pytestmark = pytest.mark.properties


def test_a_run_is_a_row_of_numbers():
    one = with_halves(record("vera", "rte", 3), (0.6, 0.9, 0.7), (0.5, 0.6, 0.8))
    (run,) = runs(ledger(one)).itertuples()
    assert (run.model, run.row, run.task, run.seed) == (
        "roberta_base",
        "vera",
        "rte",
        3,
    )
    # The best epoch of all of dev is the second or the third, of 75; by half A the
    # second, of which B says 60, by B the third, of which A says 70
    assert (run.value, run.best, run.last, run.crossfit, run.half) == pytest.approx(
        (75, 75, 75, 65, 60)
    )
    assert run.optimism == pytest.approx(75 - 65)
    assert (run.seconds, run.adapter_bytes, run.parameters) == (11, 172032, 43008)
    assert (run.kind, run.left_out, run.origin, run.reported) == (
        "result",
        "",
        "ours",
        "best",
    )
    assert math.isnan(run.bleu)


def test_what_a_record_is_and_why_it_is_in_no_cell():
    trial, stopped = record(seed=1), record(seed=2)
    trial["config"]["task"]["holdout"] = 0.2
    stopped["config"]["train"]["max_steps"] = 5
    failed = record(seed=3, status="failed", error="no memory")
    again = record(best=0.99) | {"id": "zz"}
    odd = record(best=0.9, deviations=["max_length 64"]) | {"id": "a"}
    other = record(seed=4, lr=0.5, deviations=["lr 0.5"])
    newer = [record(row="lora", seed=0), record(row="lora", seed=1) | {"protocol": 2}]
    frame = runs(
        ledger(record(), trial, stopped, failed, again, odd, other, *newer)
    ).set_index("id")
    assert frame.kind.value_counts().to_dict() == {
        "result": 6,
        "trial": 1,
        "stopped": 1,
        "failed": 1,
    }
    why = frame.left_out
    assert why[[trial["id"], stopped["id"], failed["id"]]].tolist() == [
        "trial",
        "stopped",
        "failed",
    ]
    assert why[[record()["id"], "zz", "a", other["id"]]].tolist() == [
        "",
        "seed",
        "seed",
        "settings",
    ]
    assert why[[one["id"] for one in newer]].tolist() == ["protocol", ""]
    assert frame.error[failed["id"]] == "no memory"


def test_a_cell_is_its_seeds():
    values = (0.80, 0.75, 0.90, 0.70)
    made = [record(seed=seed, best=value) for seed, value in enumerate(values)]
    for seed, one in enumerate(made):
        one["cost"]["train_seconds"] = 10.0 * seed
    (cell,) = cells_of(made[::-1]).values()
    points = [100 * value for value in values]
    assert (cell.runs, cell.n, cell.wanted, cell.complete) == (4, 4, 5, False)
    assert cell.median == pytest.approx(statistics.median(points))
    assert cell.mean == pytest.approx(statistics.fmean(points))
    assert cell.spread == pytest.approx(statistics.stdev(points))
    assert (cell.best, cell.last) == pytest.approx((77.5, 79.0))
    assert (cell.train_seconds, cell.seconds) == (15.0, 16.0)
    assert cell.seeds == (0, 1, 2, 3)
    assert cell.ids == tuple(one["id"] for one in made)
    assert cell.values == pytest.approx(tuple(points))
    (one,) = cells_of(made[:1]).values()
    assert math.isnan(one.spread)


def test_costs_are_of_the_runs_that_did_not_diverge_unless_all_did():
    made = [
        record(seed=seed, status=status)
        for seed, status in enumerate(("done", "diverged", "done"))
    ]
    for seed, one in enumerate(made):
        one["cost"]["train_seconds"] = (10.0, 1.0, 30.0)[seed]
    (cell,) = cells_of(made).values()
    assert (cell.train_seconds, cell.diverged) == (20.0, 1)
    (cell,) = cells_of(made[1:2]).values()
    assert (cell.train_seconds, cell.diverged) == (1.0, 1)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_run_without_a_finite_number_is_counted_and_never_averaged(value):
    lost = record(seed=5) | {"id": "lost"}
    lost["result"]["protocols"]["paper"]["best"] = value
    (cell,) = cells_of([*(record(seed=s) for s in range(5)), lost], 6).values()
    assert (cell.runs, cell.n, cell.complete) == (6, 5, False)
    assert all(map(math.isnan, (cell.median, cell.mean, cell.spread)))
    (gone,) = cells_of([lost | {"status": "diverged"}], 1).values()
    assert (gone.n, gone.median) == (1, 0.0)


def test_of_a_rows_variants_the_newest_protocol_counts_then_deviations_the_recipe_and_then_runs():
    def variant(count, protocol=1, deviations=(), recipe="vera/roberta_base", lr=0.1):
        of = [record(seed=seed, deviations=deviations, lr=lr) for seed in range(count)]
        return [one | {"protocol": protocol, "recipe": {"name": recipe}} for one in of]

    two, study = ["2 epochs", "lr 1"], "ranks/roberta_base"
    order = [
        variant(1, 2, two, study, 0.2),  # the newest protocol
        variant(1, 1, ["lr 1"], study, 0.3),  # the fewest deviations
        variant(2, 1, two, lr=0.4),  # a method's own recipe
        variant(4, 1, two, study, 0.5),  # the most runs
        variant(3, 1, two, study, 0.7),  # the newest of equals
        variant(3, 1, two, study, 0.6),
    ]
    for first, nearest in enumerate(order):
        for left in (order[first:], order[first:][::-1]):
            (cell,) = cells_of([one for of in left for one in of]).values()
            assert cell.ids == tuple(one["id"] for one in nearest)
            others = [of for of in left if of is not nearest]
            count = sum(map(len, others))
            if first == 0:  # the others follow an older protocol
                assert (cell.other_settings, len(cell.older_protocols)) == (0, count)
            else:
                assert (cell.other_settings, cell.older_protocols) == (count, ())


def runs_of_cells(cells):
    """How many runs a frame of cells has or says that it leaves out."""
    left_out = cells.older_protocols.map(len) + cells.repeated_ids.map(len)
    return (cells.runs + cells.other_settings + left_out).sum()


#: Seeds, protocols, training rows, and which epoch is reported.
KINDS = [*itertools.product(range(4), (1, 2), (10, 20), ("best", "last"))]


@pytest.mark.parametrize(
    "kinds", [KINDS, *(random.Random(n).sample(KINDS, n) for n in (3, 6, 9))]
)
def test_two_sizes_of_data_protocols_or_epochs_of_choice_never_meet_and_no_run_disappears(
    kinds,
):
    made = []
    for number, (seed, protocol, rows, epoch) in enumerate(kinds):
        one = record(seed=seed) | {"id": f"{number}", "protocol": protocol}
        one["data"] = one["data"] | {"content": f"sha256:{rows}", "train_rows": rows}
        one["config"]["train"] = one["config"]["train"] | {
            "evaluate_every": 3 if epoch == "last" else 1
        }
        made.append(one)
    frame = runs(ledger(*made))
    for _, of in frame[frame.left_out == ""].groupby(CELL_KEY):
        assert (of[["protocol", "train_rows", "reported", "cell"]].nunique() == 1).all()
        assert of.seed.is_unique
    by_way = cells(frame)
    assert len(by_way) == len({(rows, epoch) for _, _, rows, epoch in kinds})
    assert by_way.is_nearest.sum() == 1
    assert runs_of_cells(by_way) == len(made) == len(frame)
    # Each variant has a cell of its own
    every = cells(every_variant(frame, keep_nearest_name=False))
    assert (every.runs + every.repeated_ids.map(len)).sum() == len(made)


def test_runs_from_different_starts_are_in_no_cell_together():
    one, other = record(seed=0), record(seed=1)
    one["start"], other["start"] = (
        {"from": "a.safetensors", "id": "1"},
        {"from": "a.safetensors", "id": "2"},
    )
    (cell,) = cells_of([one, other]).values()
    assert (cell.runs, cell.other_settings) == (1, 1)


def test_the_seeds_that_a_cell_wants_are_those_of_its_protocol_or_preset():
    made = [record(task=task) for task in ("rte", "e2e", "alpaca", "reviews")]
    made[2]["cell"]["paper"], made[3]["cell"]["paper"] = None, "peers_minilm"
    wanted = {key[2]: cell.wanted for key, cell in cells_of(made, None).items()}
    assert wanted == {"rte": 5, "e2e": 3, "alpaca": 1, "reviews": 5}


def test_what_follows_the_seed_sets_no_variant_apart():
    made = [
        record("vera_redrawn", "rte", seed, lr=lr)
        for seed, lr in ((0, 0.1), (1, 0.2), (2, 0.2))
    ]
    for one in made:
        one["config"]["method"] |= {
            "redrawn": True,
            "projection_seed": one["cell"]["seed"],
        }
    named = every_variant(runs(ledger(*made)), keep_nearest_name=False)
    assert set(named.row) == {"vera_redrawn lr 0.1", "vera_redrawn lr 0.2"}


def test_every_published_record_is_a_run_and_counted_once_and_no_record_has_frames(
    monkeypatch, tmp_path
):
    empty = runs(ledger())
    assert (
        len(empty)
        == len(cells(empty))
        == len(every_variant(empty, keep_nearest_name=True))
        == 0
    )
    assert set(CELL_KEY) <= set(cells(empty))
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", PUBLISHED)
    monkeypatch.chdir(tmp_path)
    frame = analysis.runs()  # of outputs/ and the published records
    assert set(frame.id) == {
        run for folder in PUBLISHED.glob("*/") for run in read_study(folder).records
    }
    assert set(frame.kind) == {"result", "trial"}
    of = analysis.cells(frame)
    assert runs_of_cells(of) == (frame.kind == "result").sum()
    assert (frame.left_out == "").sum() == sum(map(len, of.ids))


def of_folder(path, content, seed=0, model="encoder", **changes):
    """A run of a generic model, from a folder with these weights."""
    made = record(seed=seed, model=model, **changes)
    made["config"]["model"] = {"name": model, "path": path}
    return made | {"id": f"{path} {content} {seed}", "model": f"sha256:{content}"}


def test_a_generic_model_has_the_name_of_its_folder_or_of_the_hub():
    made = [of_folder("/models/mine", "aa"), of_folder("other/", "bb")]
    made.append(of_folder("", "cc"))
    made[2]["config"]["model"] = {"name": "encoder", "hub": "owner/third"}
    frame = runs(ledger(*made))
    assert frame.model.tolist() == frame.model_label.tolist()
    assert frame.model.tolist() == ["mine", "other", "third"]
    assert {*frame.conf_model} == {"encoder"}
    assert {*frame.left_out} == {""}


def test_two_base_models_of_one_name_get_hashes_and_are_no_settings_of_each_other():
    made = [
        of_folder("/a/mine", "aaaaaaaaaaaa"),
        of_folder("/b/mine", "bbbbbbbbbbbb"),
        of_folder("/b/mine", "bbbbbbbbbbbb", 1),
    ]
    frame = runs(ledger(*made))
    assert frame.model.tolist() == ["mine aaaaaaaa", "mine bbbbbbbb", "mine bbbbbbbb"]
    assert {*frame.left_out} == {""}
    # A model of conf/model keeps its name for the weights of most runs.
    usual = [record(seed=seed) for seed in range(2)]
    tuned = record(seed=0) | {"model": "sha256:cccccccccccc", "id": "tuned"}
    frame = runs(ledger(*usual, tuned))
    assert frame.model.tolist() == ["roberta_base"] * 2 + ["roberta_base cccccccc"]
    assert {*frame.left_out} == {""}


def test_costs_are_compared_between_rows_of_the_same_tasks_data_precision_and_device():
    made = [record(row, task) for row in ("vera", "lora") for task in ("rte", "cola")]
    made += [record("full", "rte"), record("head", "rte"), record("head", "cola")]
    made[-1]["device"] = {"type": "cpu", "name": "another CPU"}
    shown = comparable_costs(cells(runs(ledger(*made))))
    assert {*shown.row[shown.seconds.notna()]} == {"vera", "lora"}
    # Seeds on two devices have no cost that could be compared.
    made = [record("vera", seed=seed) for seed in range(2)] + [record("lora")]
    made[0]["device"] = {"type": "cpu", "name": "another CPU"}
    assert comparable_costs(cells(runs(ledger(*made)))).seconds.isna().all()
    assert comparable_costs(cells(runs(ledger(made[2])))).seconds.tolist() == [11]
