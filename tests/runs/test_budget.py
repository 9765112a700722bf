"""budget=N: the setting of a row that trains about N parameters (conf/budget.yaml)."""

import pytest
from running import call_here, refused

from runs.config import Files, expand, read_command
from runs.config.budget import build_ladder, rows_with_ladder
from runs.config.compose import Composer
from runs.models import skeleton
from runs.run.identity import run_id
from runs.run.methods import method_of_settings

pytestmark = pytest.mark.contract

CELL = ["model=minilm", "task=reviews"]


@pytest.mark.slow  # a skeleton for each rung of each row
@pytest.mark.parametrize("row", rows_with_ladder())
def test_a_run_trains_what_its_rung_counts(row):
    words = [*CELL, f"method={row}"]
    with Composer(Files()) as composer:
        first_cell = tuple(word.replace(":", " method.config_class=") for word in words)
        ladder = build_ladder(tuple(" ".join(first_cell).split()), composer)
    rung = ladder.rungs[len(ladder.rungs) // 2]
    (run,) = expand([*words, f"budget={rung.parameters}"])
    model = skeleton(run.config["model"], num_labels=2)
    method = method_of_settings(run.method)
    method.adapt(model)
    trained = method.adapter_parameters(model).values()
    assert sum(parameter.numel() for parameter in trained) == rung.parameters


def test_the_nearest_setting_is_by_ratio_and_a_far_one_is_left_out():
    with Composer(Files()) as composer:
        ladder = build_ladder((*CELL, "method=lora"), composer)
    for budget in (1_000, 7_000, 50_000):
        nearest = ladder.nearest(budget)
        ratios = [
            max(r.parameters / budget, budget / r.parameters) for r in ladder.rungs
        ]
        assert nearest.ratio_to(budget) == min(ratios)
        assert not ladder.misfit(budget)
    assert "nearest trains 768" in ladder.misfit(10)


def test_one_b_for_all_layers_is_a_rung_of_vera_and_a_tied_head_counts_once():
    with Composer(Files()) as composer:
        ladders = [
            build_ladder(
                ("model=smollm2", "task=sums_digit", f"method={row}"), composer
            )
            for row in ("vera", "full")
        ]
    vera, full = ladders
    # b alone of all linear layers: 576 + 192 + 192 + 576 + 1536 + 1536 + 576
    rung = vera.nearest(5184)
    assert rung.parameters == 5184
    assert "method.shared_b=true" in rung.overrides
    assert "sites=[all-linear]" in rung.label
    # 162.8M with a head of its own
    assert full.rungs[0].parameters == 134_515_008


def test_the_id_says_what_was_trained_and_not_the_budget():
    (run,) = expand([*CELL, "method=vera", "budget=1000"])
    sites = ",".join(run.config["method"]["sites"])
    typed = ["method.vectors=[b]", "method.rank=256", f"method.sites=[{sites}]"]
    (same_run,) = expand([*CELL, "method=vera", *typed])
    assert run_id(run) == run_id(same_run)
    assert "budget" not in run.config


def test_a_sweep_over_budgets_leaves_out_what_no_setting_fits():
    words = [*CELL, "method=vera,lora_xs", "budget=10,1000", "seed=0,1"]
    for _ in range(2):  # composed, and from the cache
        command = read_command(words)
        assert len(command.runs) == 6
        (reason,) = command.notes
        assert "vera has no setting near 10 parameters on MiniLM" in reason


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["method=vera", "budget=10"], "no setting near 10"),
        (["method=vera", "budget=1e3"], "budget=1e3"),
        (["method=bitfit", "budget=1000"], "no ladder for bitfit"),
        (["method=lora", "budget=1000", "method.rank=4"], "method.rank"),
    ],
)
def test_what_a_budget_cannot_mean_is_one_line(words, reason):
    with refused(reason):
        expand([*CELL, *words])


def test_counts_prints_the_setting_of_each_row():
    words = ["budget=1000,100000", "model=minilm", "method=vera,ia3"]
    lines = call_here("runs.counts", *words, check=0).stdout.splitlines()
    assert len(lines) == 5
    assert "vectors=[b]" in lines[1]
    assert "none is near" in lines[4]
    error = call_here("runs.counts", "budget=1000", check=2).stderr
    assert "a budget needs a model" in error
