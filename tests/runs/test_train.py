"""The training loop: known loss sequences, the same record however it is run, and a
record that says what was done."""

import copy
import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from running import (
    CONFIGURATION,
    ROOT,
    begin,
    comparable,
    replace_words,
    straight_and_resumed,
    train_here,
    trained,
)
from tiers import slow_except
from torch import nn

from runs.command.errors import UserError
from runs.config import expand
from runs.record.cell import ReportedMetric, dev_halves
from runs.record.derived import summarise
from runs.record.steps import rate_factor
from runs.run import provenance
from runs.run.definition import check_dev_rows, epoch_batches
from runs.run.identity import run_id
from runs.training.loop import Training
from runs.training.result import deviations
from runs.training.train import train

pytestmark = pytest.mark.determinism


# --- the numbers

#: The adapter's learning rate and the losses of five steps on the tiny BERT, RTE rows
#: of our own, seed 0. Recorded once; they move only with the loop, the method, or the
#: initial values. The rates are large, so that methods differ by far more than the
#: tolerance.
LOSSES = {
    "full": (0.01, [0.6976132, 0.7257962, 0.6968036, 0.6931835, 0.6815838]),
    "head": (0.01, [0.6976132, 0.7244044, 0.6918511, 0.6931775, 0.6893194]),
    "bitfit": (0.1, [0.6976132, 0.7269115, 0.6962196, 0.6931659, 0.6798387]),
    "lora": (0.1, [0.6976132, 0.7248132, 0.6926873, 0.6931795, 0.68684]),
    "vera": (1.0, [0.6976132, 0.7245866, 0.6925298, 0.6931776, 0.6858606]),
    "adapter_l": (0.1, [0.6976128, 0.7270648, 0.6959795, 0.6933116, 0.6762732]),
    "vera_plus": (1.0, [0.6976132, 0.7244564, 0.6899503, 0.6945184, 0.6709319]),
    "lora_xs": (1.0, [0.6976131, 0.7247406, 0.6915442, 0.6932178, 0.6889504]),
    "tied_lora": (0.1, [0.6976132, 0.7245679, 0.6927209, 0.6931936, 0.687456]),
    "nola": (0.1, [0.6976132, 0.7244819, 0.6918293, 0.6931778, 0.6893024]),
    "adapter_drop": (0.1, [0.6976109, 0.7279094, 0.6913061, 0.6931656, 0.6894526]),
    "dylora": (0.1, [0.6976132, 0.7244921, 0.6922628, 0.6931917, 0.6896009]),
    "adalora": (0.1, [2.4074574, 1.793972, 1.8067327, 1.2749357, 1.067896]),
}


#: Kinds of groups, and what draws or allocates as the loop goes on. The others draw
#: what they begin with.
FAST = ("full", "head", "bitfit", "lora", "vera", "adapter_drop", "dylora", "adalora")


@pytest.mark.parametrize("method", slow_except(LOSSES, *FAST))
def test_loss_sequence(method, words):
    rate, expected = LOSSES[method]
    words = [word for word in words if not word.startswith("method.")]
    words += [
        f"method={method}",
        "train.lr_head=1e-2",
        f"train.lr={rate}",
        "train.warmup_ratio=0",
    ]
    words += (
        ["method.rank=8"]
        if method.startswith(("lora", "vera", "tied", "nola", "dylora"))
        else []
    )
    words += ["method.bases=16"] if method == "nola" else []
    words += ["method.bottleneck=4"] if method.startswith("adapter") else []
    loop = begin(words)
    batches = epoch_batches(loop.lengths, 8, seed=0, epoch=0)
    assert [float(loop.step(rows)) for rows in batches[:5]] == pytest.approx(
        expected, abs=1e-5
    )


@torch.no_grad()
def shake(parameters, size=0.1) -> None:
    """Moves zeros away from 0: there a gradient would be 0 whatever its scale."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("micro", "clip"), [(8, "null"), (3, 0.1), (1, "null")])
def test_a_step_is_adamw_on_the_mean_loss_of_the_whole_batch(micro, clip, words):
    """One step against plain torch, whatever the micro-batch. The rates and eps are so
    large that a gradient of another scale would end elsewhere."""
    settings = {
        "lr": 1.0,
        "lr_head": 0.5,
        "adam_eps": 1.0,
        "clip": clip,
        "weight_decay": 0.1,
    }
    settings["lr_by"] = "{b:0.25}"
    chosen = [f"train.{key}={value}" for key, value in settings.items()]
    kept = [
        word
        for word in words
        if word.partition("=")[0] not in {w.partition("=")[0] for w in chosen}
    ]
    loop = begin([*kept, *chosen, "train.warmup_ratio=0", f"micro_batch={micro}"])
    shake(loop.parameters.values())
    reference = copy.deepcopy(loop.raw_model).train()
    rows = epoch_batches(loop.lengths, 8, seed=0, epoch=0)[0]
    loss = float(loop.step(rows))

    expected = reference(
        **{k: torch.from_numpy(v) for k, v in loop.task.collate("train", rows).items()}
    ).loss
    expected.backward()
    named = {n: p for n, p in reference.named_parameters() if p.requires_grad}
    if clip != "null":
        assert nn.utils.clip_grad_norm_(named.values(), clip) > clip
    head = loop.method.parameter_groups(loop.raw_model)["head"]
    groups = [
        {"params": [p], "lr": 0.5 if n in head else 0.25 if n.endswith(".b") else 1.0}
        | {"weight_decay": 0.0 if n.endswith("bias") else 0.1}
        for n, p in named.items()
    ]
    torch.optim.AdamW(groups, eps=1.0).step()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-6)
    for name, parameter in loop.parameters.items():
        torch.testing.assert_close(parameter, named[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_the_schedules_are_transformers_own(kind):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {"constant": "constant_with_warmup"}.get(kind, kind)
    for warmup, total in ((0, 1), (0, 10), (3, 17), (60, 1000), (7, 7)):
        factor = get_scheduler(theirs, optimizer, warmup, total).lr_lambdas[0]
        ours = [rate_factor(step, kind, warmup, total) for step in range(total)]
        assert ours == [factor(step) for step in range(total)]


def test_batches_hold_every_row_once_of_like_lengths_or_of_one_permutation():
    """Without blocks, whatever the lengths, as transformers' Trainer. The halves of dev
    are fixed."""
    lengths = np.random.default_rng(0).integers(5, 100, 1000).tolist()
    batches = epoch_batches(lengths, 16, seed=3, epoch=2)
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    assert batches == epoch_batches(lengths, 16, seed=3, epoch=2)
    assert batches != epoch_batches(lengths, 16, seed=3, epoch=1)
    assert batches != epoch_batches(lengths, 16, seed=4, epoch=2)
    random = epoch_batches(lengths, 16, seed=3, epoch=2, block=1)
    order = np.random.Generator(np.random.Philox(key=[3, 2])).permutation(1000).tolist()
    assert sorted(random) == sorted(order[i : i + 16] for i in range(0, 1000, 16))
    assert random == epoch_batches([1] * 1000, 16, seed=3, epoch=2, block=1)
    padded, more = (
        sum(len(b) * max(lengths[row] for row in b) for b in of)
        for of in (batches, random)
    )
    assert padded < 1.15 * sum(lengths) < 1.6 * sum(lengths) < more
    one, other = dev_halves(101)
    assert (len(one), len(other), sorted([*one, *other])) == (50, 51, list(range(101)))
    assert (sum(one), sum(other)) == (2538, 2512)  # those of the published records
    assert all(
        np.array_equal(a, b) for a, b in zip((one, other), dev_halves(101), strict=True)
    )


def test_a_run_trains_on_random_batches_where_its_task_says_so(words):
    seen = {}
    for grouped in ("true", "false"):
        loop = begin([*words, f"task.length_grouped={grouped}"])
        loop.step = lambda rows, grouped=grouped: (
            seen.setdefault(grouped, []).append(rows) or 0.5
        )
        loop.train_and_decode()
    assert seen["true"] == [
        b for e in (0, 1) for b in epoch_batches(loop.lengths, 8, 0, e, 8)
    ]
    assert seen["false"] == [
        b for e in (0, 1) for b in epoch_batches(loop.lengths, 8, 0, e, 1)
    ]


def test_the_result_has_both_protocols_and_the_epoch_that_is_kept():
    """Of the whole the second epoch, which is kept; of half A the first, and of B the
    second."""
    curve = {"epoch": [1.0, 2.0, 3.0], "metric": [0.5, 0.7, 0.7]}
    curve |= {"metric_select": [0.9, 0.6, 0.9], "metric_report": [0.1, 0.8, 0.5]}
    for select, best in (("paper", 0.7), ("crossfit", (0.1 + 0.6) / 2)):
        result = summarise(curve, 10, ReportedMetric("accuracy"), "best", select)
        assert (result["best"], result["last"], result["best_epoch"]) == (
            pytest.approx(best),
            0.7,
            2.0,
        )
        assert result["protocols"]["paper"] == {
            "best": 0.7,
            "best_epoch": 2.0,
            "last": 0.7,
        }
        assert result["protocols"]["crossfit"]["best_epoch"] == [1.0, 2.0]
    perplexity = ReportedMetric("perplexity", higher_is_better=False, scale=1.0)
    assert summarise(curve, 10, perplexity, "last", "paper")["best_epoch"] == 1.0
    empty = {key: [] for key in curve}
    assert summarise(empty, 10, perplexity, "best", "crossfit")["best"] is None


# --- the record


def test_a_record_says_what_was_done(words):
    """And what tests/nets, which holds its numbers, cannot: how they hang together, and
    its files."""
    record, (run,) = trained(words), expand(words)
    parameters, curve = record["parameters"], record["curve"]
    assert parameters["adapter"] == parameters["formula"] == 4 * (32 + 8)
    assert (parameters["frozen_extra"], parameters["head"]) == (
        2 * 8 * 32,
        32 * 32 + 32 + 32 * 2 + 2,
    )
    a, b, rows = (
        curve["metric_select"],
        curve["metric_report"],
        record["data"]["dev_rows"],
    )
    assert np.average(
        [a, b], axis=0, weights=[rows // 2, rows - rows // 2]
    ) == pytest.approx(curve["metric"])
    folder = Path(run.config["output"]) / "runs" / run_id(run)
    kept = {"adapter.safetensors", "head.safetensors"}
    assert {path.name for path in folder.iterdir()} == {
        *kept,
        *CONFIGURATION,
        "predictions.csv",
    }
    assert (
        record["cost"]["adapter_bytes"]
        == (folder / "adapter.safetensors").stat().st_size
    )
    assert str(ROOT) not in json.dumps(
        {k: v for k, v in record.items() if k != "config"}
    )


RANK, GROUPED = (
    "rank 2 instead of the recipe's 8",
    "batches are of like lengths; the recipe's are random",
)
NONE = "no recipe for this method and model: the harness's defaults"
LACKS = "the recipe has no {} for this task: the harness's defaults"
DEVIATIONS = {
    "method=lora_r2 method.alpha=2": [
        "alpha follows the rank (alpha=r), the recipe's is constant 8",
        RANK,
    ],
    "method=lora_r2 method.alpha=3": ["alpha 3 instead of the recipe's 8", RANK],
    "method=lora method.scaling=proportional": [],
    "method=vera method.sites=[query]": ["method.sites=[query] given"],
    "method=vera task.length_grouped=false": [
        "batches are random; the recipe's are of like lengths"
    ],
    "model=roberta_base task=rte task.length_grouped=true": [GROUPED],
    "model=encoder model.path=/x task.length_grouped=false": [
        NONE,
        "batches are random; the harness's are of like lengths",
    ],
    "model=gpt2_medium task=e2e task.length_grouped=true": [],  # tasks/e2e.py says it
    # Its recipe has rates and epochs for GLUE's tasks alone
    "model=roberta_base task=reviews train.lr=0.5": [
        LACKS.format("epochs"),
        "train.lr=0.5 given",
    ],
    "model=roberta_base task=mnli method=head": [LACKS.format("epochs and lr_head")],
    # Another method under the row's name
    "method=dora ~method.config.use_dora": ["~method.config.use_dora given"],
    "method=lora_plus ~train.lr_by.B": ["~train.lr_by.B given"],
    # its label has the setting
    "method=peft:IA3Config method.config={fan_in_fan_out:true}": [NONE],
    "method=none train.lr=0.5 train.max_length=8": ["train.max_length=8 given"],
}


@pytest.mark.parametrize("words", DEVIATIONS)
def test_deviations_say_once_what_differs_from_the_recipe(words):
    (run,) = expand(words.split())
    assert deviations(run, []) == DEVIATIONS[words]


def test_fewer_evaluations_see_the_same_training(words, tmp_path):
    """Of five epochs the second, the fourth and the last are evaluated: the rest of the
    record is that of five."""
    words = [*words, "train.epochs=5"]
    every = trained(replace_words(words, output=tmp_path / "every"))
    second = train_here(
        [*replace_words(words, output=tmp_path / "second"), "train.evaluate_every=2"]
    )
    assert (second["id"] != every["id"], second["curve"]["epoch"]) == (
        True,
        [2.0, 4.0, 5.0],
    )
    for key in ("step", "dev_loss", "metric", "metric_select", "metric_report", "lr"):
        assert second["curve"][key] == [every["curve"][key][i] for i in (1, 3, 4)], key
    # a point's is of all steps since the point before
    losses = every["curve"]["train_loss"]
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]
    assert second["curve"]["train_loss"] == pytest.approx(means, rel=1e-12)
    for part, key in (("result", "last"), ("predictions", "last")):
        assert second[part][key] == every[part][key]
    assert second["steps"] == every["steps"]


def test_steps_between_evaluations_replace_epochs(words, tmp_path):
    """The same training, seen at other steps: the last one is always among them."""
    every = trained(replace_words(words, output=tmp_path / "every"))
    last = every["steps"]
    record = train_here(
        [*replace_words(words, output=tmp_path / "steps"), "train.evaluate_steps=3"]
    )
    steps = [*range(3, last, 3), last]
    assert record["curve"]["step"] == steps
    assert record["curve"]["dev_loss"][-1] == every["curve"]["dev_loss"][-1]
    assert record["predictions"]["last"] == every["predictions"]["last"]
    assert record["id"] != every["id"]


def test_keep_none_keeps_nothing_and_full_does_so_by_default(words):
    """And a row that trains much of the model says so, but for full fine-tuning."""
    plain, told = [w for w in words if not w.startswith("method.")], []
    peft = ["method=peft:LNTuningConfig", "method.sites=[query,value]"]
    for extra in ([*peft, "keep=none"], ["method=full"]):
        record = train_here([*plain, *extra, "train.max_steps=1"])
        folder = Path(record["config"]["output"]) / "runs" / record["id"]
        assert {path.name for path in folder.iterdir()} == {
            *CONFIGURATION,
            "predictions.csv",
        }
        told.append(
            [words for words in record["deviations"] if words.startswith("trains ")]
        )
    assert record["cost"]["adapter_bytes"] == 4 * record["parameters"]["adapter"]
    assert [len(words) for words in told] == [1, 0]
    assert "(4,224)" in told[0][0]


def test_divergence_is_a_result_and_the_record_stays_readable(
    words, tmp_path, monkeypatch
):
    rates = [
        "train.lr=1e30",
        "train.lr_head=1e30",
        "train.clip=null",
        "train.warmup_ratio=0",
    ]
    record = train_here([*words, *rates, "train.schedule=constant"])
    assert (record["status"], record["steps"] < 10) == ("diverged", True)
    assert "loss became" in record["error"]
    monkeypatch.setattr(
        Training, "evaluate", lambda *_: (float("nan"), np.zeros((24, 2)))
    )
    record = train_here(replace_words(words, output=tmp_path / "evaluated"))
    assert (record["status"], record["result"]["best"]) == ("diverged", None)
    assert "dev loss became nan" in record["error"]


def test_a_dev_set_of_one_row_is_refused():
    with pytest.raises(UserError, match="the dev set has 1 row"):
        check_dev_rows(1)


def test_every_method_starts_from_the_same_head_and_the_seed_decides(words):
    """The head is drawn before the method is installed: rows of a table differ by the
    method alone."""
    plain = [w for w in words if not w.startswith("method.")]
    rows = (
        ("head", "seed=0"),
        ("vera", "seed=0"),
        ("lora", "seed=0"),
        ("head", "seed=1"),
    )
    models = (
        begin([*plain, f"method={method}", seed]).raw_model for method, seed in rows
    )
    first, *others = (model.classifier.weight for model in models)
    assert [torch.equal(first, other) for other in others] == [True, True, False]


def test_half_precision_trains(words):
    half, single = train_here([*words, "train.precision=bf16"]), trained(words)
    assert half["id"] != single["id"]
    assert half["curve"]["train_loss"] == pytest.approx(
        single["curve"]["train_loss"], abs=0.02
    )
    assert half["curve"]["train_loss"] != single["curve"]["train_loss"]


@pytest.mark.parametrize(("cpu", "slow"), [("AVX2", True), ("AVX512", False)])
def test_the_first_step_tells_the_pace_and_what_is_left(words, monkeypatch, cpu, slow):
    """And, before it, that bf16 is slow on a CPU with AVX2 alone."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    loop, events = begin([*words, "train.precision=bf16"]), []
    loop.report = events.append
    train(loop)
    assert ("slow in bf16" in events[0]["phase"]) is slow
    first = next(event for event in events if event.get("step") == 1)
    assert 0 < first["pace"] < 1e9
    assert first["seconds_left"] > 0


@torch.no_grad()
def test_the_dev_rows_are_evaluated_without_dropout_and_count_alike(dropout_words):
    """By batches of 7, the last one of less; against each row by itself, in
    transformers alone."""
    loop = begin([*dropout_words, "eval_batch=7"])
    shake(loop.parameters.values())
    rows = range(len(loop.task.lengths("dev")))
    assert len(rows) % 7
    reference = copy.deepcopy(loop.raw_model).eval()

    def answers():
        batches = (loop.task.collate("dev", [row]) for row in rows)
        return [
            reference(**{k: torch.from_numpy(v) for k, v in batch.items()})
            for batch in batches
        ]

    gaps = (
        torch.stack([one.logits[0, 1] - one.logits[0, 0] for one in answers()])
        .sort()
        .values
    )
    # between two rows: no tie
    margin = float(gaps[len(gaps) // 2 - 1 : len(gaps) // 2 + 1].mean())
    for model in (reference, loop.raw_model):
        model.classifier.bias[1] -= margin  # or all rows would be of one class
    loop.raw_model.train()
    loss, outputs = loop.evaluate()
    predictions = loop.task.predict(outputs)
    assert loss == pytest.approx(
        np.mean([float(one.loss) for one in answers()]), abs=1e-6
    )
    assert predictions.tolist() == [int(one.logits.argmax()) for one in answers()]
    assert len(set(predictions.tolist())) == 2


# --- the same record, however it is run


def test_a_damaged_checkpoint_starts_over_and_gives_the_same_record(
    words, tmp_path, capfd
):
    straight, damaged = (
        replace_words(words, output=tmp_path / name) for name in ("straight", "damaged")
    )
    loop = begin(damaged)
    for rows in epoch_batches(loop.lengths, 8, seed=0, epoch=0)[:2]:
        loop.step(rows)
    loop._save()
    whole, before = (
        loop.checkpoint.path.read_bytes(),
        {n: p.clone() for n, p in loop.parameters.items()},
    )
    # Of another seed, with the same parameters: as where somebody copied a folder
    assert dataclasses.replace(loop.checkpoint, run_id="another").load() is None
    assert "not usable (of another run): starting over" in capfd.readouterr().out
    for content in (
        whole[: len(whole) // 2],
        # in the tensors, which are read all the same
        whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
        whole.replace(b'\\"step\\": 2', b'\\"step\\": 3'),
    ):
        assert content != whole
        loop.checkpoint.path.write_bytes(content)
        assert loop.checkpoint.load() is None
        assert "not usable" in capfd.readouterr().out
    assert all(
        torch.equal(parameter, before[name])
        for name, parameter in loop.parameters.items()
    )
    assert comparable(train_here(damaged)) == comparable(trained(straight))


CHANGES = [
    # draws blocks for each batch
    ["method=adapter_drop", "method.bottleneck=4", "train.schedule=cosine"],
    # allocates ranks as it goes
    ["method=adalora", "method.initial_share=0.1", "method.interval=2"],
    [
        "method=peft",
        "method.config_class=AdaLoraConfig",
        "method.config={tinit: 2, deltaT: 2}",
    ],
    # draws a rank for each step; more groups
    ["method=dylora", "method.rank=8", "train.lr_by={A:3e-2}"],
    # Has a frozen A, which the seed draws. In the second of two epochs nothing was
    # evaluated, and yet counted
    ["method=lora_fa", "train.evaluate_every=2"],
    ["method=lora", "train.evaluate_steps=2"],
]


@pytest.mark.parametrize(
    "change", slow_except(CHANGES, *CHANGES[:2]), ids=lambda change: change[0]
)
def test_resuming_inside_an_epoch_gives_the_record_of_the_straight_run(
    change, dropout_words, tmp_path
):
    words = [*(w for w in dropout_words if not w.startswith("method.")), *change]
    loop = begin(words)
    loop.step([0])
    assert any(
        of.p and of.training
        for of in loop.raw_model.modules()
        if isinstance(of, nn.Dropout)
    )
    straight, resumed = straight_and_resumed(words, tmp_path, "step", 8)
    assert comparable(resumed) == comparable(straight)
    assert "resumed" not in resumed["determinism"]


def test_a_checkpoint_brings_back_what_a_method_gathered_and_each_generator(words):
    """Also where the record of a tiny run does not tell: an own method may draw by
    Python's generator."""
    of_row = [word for word in words if not word.startswith("method.")]
    loop = begin([*of_row, "method=adalora"])
    loop.step([0, 1])
    loop._save()

    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(1))

    gathered, after = loop.method.training_state(loop.raw_model), drawn()
    _, loaded = loop.checkpoint.load()
    assert drawn() == after
    assert {*loaded} == {*gathered} != set()
    assert all(torch.equal(loaded[name], of) for name, of in gathered.items())


def test_a_run_that_goes_on_under_other_conditions_says_so(words, monkeypatch, capfd):
    loop = begin([*words, "micro_batch=4"])
    loop._save()
    older = provenance.versions()["torch"]
    newer = provenance.versions() | {"torch": "9.9"}
    monkeypatch.setattr(provenance, "versions", lambda: newer)
    record = train_here([*words, "micro_batch=2"])
    words = f"torch {older}, then 9.9; micro_batch 4, then 2"
    assert record["determinism"]["resumed"] == [
        f"at step 0 of {loop.plan.total_steps}: {words}"
    ]
    assert words in capfd.readouterr().out
