"""train.lr=auto: LoRA's rate times a method's usual ratio to LoRA (conf/rates.yaml)."""

import pytest
from running import call_here, refused

from runs.config import expand, read_command
from runs.record.ledger import in_conf
from runs.run.identity import run_id

pytestmark = pytest.mark.contract

RATIOS = in_conf("rates.yaml")["ratios"]


def test_the_rate_is_that_of_loras_recipe_times_the_ratio():
    words = ["model=minilm", "task=sst2"]
    (lora,) = expand([*words, "method=lora"])
    for method in ("vera", "bitfit"):
        (run,) = expand([*words, f"method={method}", "train.lr=auto"])
        rate = float(f"{lora.config['train']['lr'] * RATIOS[method]:.2g}")
        assert run.config["train"]["lr"] == rate
        # It is the run that somebody gets who types the rate.
        (typed,) = expand([*words, f"method={method}", f"train.lr={rate:g}"])
        assert run_id(run) == run_id(typed)
    (same,) = expand([*words, "method=lora", "train.lr=auto"])
    assert run_id(same) == run_id(lora)


def test_the_recipe_that_is_named_is_asked_for_loras_rate():
    words = ["model=minilm", "task=stsb", "recipe=peers/minilm", "task.train_rows=1000"]
    (lora,) = expand([*words, "method=lora"])
    assert lora.config["train"]["lr"] == 0.002
    (run,) = expand([*words, "method=vera", "train.lr=auto"])
    assert run.config["train"]["lr"] == pytest.approx(0.002 * RATIOS["vera"])
    words = ["model=minilm", "task=sst2", "method=vera", "recipe=vera/minilm"]
    (run,) = expand([*words, "train.lr=auto"])
    (plain,) = expand(["model=minilm", "task=sst2", "method=vera", "train.lr=auto"])
    assert run.config["train"]["lr"] == plain.config["train"]["lr"]


def test_a_typed_rate_of_lora_stands_for_a_recipe_and_methods_may_be_listed():
    words = ["model=minilm", "task=sst2", "method=vera,peft:LoKrConfig", "seed=0,1"]
    for _ in range(2):  # composed, and from the cache
        command = read_command([*words, "train.lr=auto:1e-3"])
        rates = [run.config["train"]["lr"] for run in command.runs]
        vera = float(f"{1e-3 * RATIOS['vera']:.2g}")
        lokr = float(f"{1e-3 * RATIOS['peft_lokr']:.2g}")
        assert rates == [vera, vera, lokr, lokr]
        first, last = command.notes
        assert first.startswith(f"train.lr=auto: {vera:g} for vera, LoRA's 0.001 times")
        assert in_conf("rates.yaml")["loss"] in last


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("method=adalora train.lr=auto", "no published search has adalora"),
        ("method=vera train.lr=auto:x", "LoRA's rate should be a number"),
        ("method=vera train.lr=auto:-1", "LoRA's rate should be a number"),
        ("method=vera train.lr=auto:inf", "LoRA's rate should be a number"),
    ],
)
def test_a_rate_that_no_rule_gives_is_refused_in_one_line(words, reason):
    with refused(reason):
        expand(["model=minilm", "task=sst2", *words.split()])


@pytest.mark.parametrize(
    "words",
    [
        "model=encoder model.hub=owner/name task=sst2",  # a model without recipes
        "model=roberta_base task=reviews",  # LoRA's recipe has rates of other tasks
    ],
)
def test_a_rule_without_loras_rate_is_refused(words):
    with refused("no recipe has LoRA's rate", "train.lr=auto:RATE"):
        expand([*words.split(), "method=vera", "train.lr=auto"])


def test_a_command_says_which_rates_it_took():
    words = ["model=minilm", "task=sst2", "method=vera", "train.lr=auto"]
    printed = call_here("runs.plan", *words, check=0)
    assert "train.lr=auto: " in printed.stderr
    assert "docs/starting_rates.md" in printed.stderr
