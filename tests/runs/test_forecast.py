"""The plan before the first run: steps, tokens, FLOPs and, once a device was probed, hours. Each is held
against what real runs, real tokens and torch itself count."""

import copy
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from running import ROOT, call_here, do, elsewhere, output_of, trained
from tiers import sample

from runs import plan
from runs.config import CONF, expand
from runs.forecast import cost, flops, pace, rows
from runs.forecast.outline import outline, shape_of_run
from runs.forecast.rows import Sources, known_data
from runs.lengths import GRID, Lengths, kept_lengths
from runs.record import Ledger, read_ledger
from runs.training.state import Plan


@pytest.fixture
def new_cache(monkeypatch, tmp_path):
    """A user's cache in which no run has left anything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fresh(monkeypatch, tmp_path, name="another"):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


# --- steps


def without(words, *keys):
    return [w for w in words if w.partition("=")[0] not in keys]


#: Fixtures of small runs, and what is changed in them.
SMALL = [
    ("words", ()),
    ("words", ("train.max_steps=7",)),
    ("words", ("task.train_rows=19", "task.dev_rows=9", "train.effective_batch=4", "micro_batch=2")),
    ("words", ("task.holdout=0.3",)),
    ("alpaca_words", ()),
    ("e2e_words", ("task.decode=none", "task.train_rows=5")),
    ("image_words", ()),
    ("image_words", ("task.shots=3", "task.holdout=0.5", "train.epochs=3")),
    ("image_words", ("task.shots=null", "task.holdout=0.5")),
]


@pytest.mark.parametrize(("kind", "changes"), sample(SMALL, SMALL[0], SMALL[3], SMALL[4], SMALL[5], SMALL[8]))
def test_steps_and_rows_are_those_of_the_run(kind, changes, request, monkeypatch, tmp_path):
    same_rows(
        [*without(request.getfixturevalue(kind), *(c.partition("=")[0] for c in changes)), *changes],
        monkeypatch,
        tmp_path,
    )


@pytest.mark.usefixtures("java")
def test_texts_that_are_decoded_are_counted_too(e2e_words, monkeypatch, tmp_path):
    same_rows([*e2e_words, "task.items=1", "task.train_rows=5"], monkeypatch, tmp_path)


def same_rows(words, monkeypatch, tmp_path):
    """Before a run, from its files alone; after it, from what it has left in the cache, and from its
    record."""
    record = do(words)
    (run,) = expand(words)
    kept = outline(run, Sources())
    assert kept.exact
    fresh(monkeypatch, tmp_path)
    before, by_record = outline(run, Sources()), outline(run, Sources([record]))
    for each in (kept, before, by_record):
        assert each.steps == record["steps"]
    data = known_data(run, Sources())
    assert (data.train.rows, data.dev.rows) == (record["data"]["train_rows"], record["data"]["dev_rows"])
    assert data.items == (record["texts"] or {}).get("items", 0)


def test_the_table_has_the_rows_that_the_tasks_know():
    from tasks import e2e, glue, images, instruct

    table = yaml.safe_load((CONF / "rows.yaml").read_text())
    for name, spec in glue.SPECS.items():
        assert tuple(table[name]["rows"].values()) == spec.rows
    assert table["e2e"]["rows"] == {split: e2e.ROWS[split] for split in ("train", "dev")}
    assert table["alpaca"]["rows"]["train"] == instruct.PUBLISHED
    for name, (classes, train, test) in images.task.PUBLISHED.items():
        assert (table[name]["classes"], *table[name]["rows"].values()) == (classes, train, test)
    for entry in table.values():
        for values in entry.get("tokens", {}).values():
            assert len(values["at"]) == len(GRID)
            assert values["at"] == sorted(values["at"])
            assert values["at"][0] <= values["mean"] <= values["at"][-1]


@pytest.mark.parametrize("study", ["glue_minilm", "glue_more_minilm"])
def test_published_runs_took_the_steps_and_about_the_tokens_that_the_table_says(study, new_cache):
    """The table's lengths are GPT-2's, the runs' are WordPieces: a tenth fewer or more."""
    seen = 0
    for path in sorted((Path(rows.__file__).parents[1] / "records" / study).glob("*.json")):
        record = json.loads(path.read_bytes())
        config, task = record["config"], record["config"]["task"]
        if record["status"] != "done" or not record["steps"] or task["name"] not in rows.table():
            continue
        # As if its data came from the hub: the records' are local copies of the same rows
        known = rows._with_lengths(task, rows._of_table({**task, "data_dir": None})[:3], exact=True)
        if task.get("holdout"):
            continue
        where = Plan.of({"evaluate_every": 1, **config["train"]}, known.train.rows, known.dev.rows, True)
        assert where.total_steps == record["steps"], path.name
        if record["steps"] % where.steps_per_epoch:
            continue
        tokens = record["cost"]["tokens_per_second"] * record["cost"]["train_seconds"]
        epochs = record["steps"] // where.steps_per_epoch
        length = known.train.cut(config["train"]["max_length"]).mean
        assert epochs * known.train.rows * length == pytest.approx(tokens, rel=0.1), path.name
        seen += 1
    assert seen >= 10


# --- tokens


def test_a_run_leaves_its_lengths_and_they_are_those_of_its_batches(words, monkeypatch, tmp_path):
    import torch

    from runs.training.build import build, epoch_batches

    record = do(words)
    (run,) = expand(words)
    lengths, items = kept_lengths(run, {})
    task = build(run, torch.device("cpu"))[0]
    real = task.lengths("train")
    assert (lengths["train"].rows, items) == (len(real), 0)
    assert lengths["train"].mean == pytest.approx(sum(real) / len(real))
    tokens = record["cost"]["tokens_per_second"] * record["cost"]["train_seconds"]
    # Two epochs of all rows; the record's pace is rounded to a tenth, its seconds to a thousandth
    assert outline(run, Sources()).tokens == 2 * sum(real) == pytest.approx(tokens, rel=0.02)
    for block in (1, 8):
        padded, count = 0, 0
        for epoch in range(40):
            for batch in epoch_batches(real, 8, 0, epoch, block):
                padded += len(batch) * max(real[row] for row in batch)
                count += len(batch)
        assert lengths["train"].padded(8, block) == pytest.approx(padded / count, rel=0.06)


@pytest.mark.parametrize("kind", ["alpaca_words", "e2e_words"])
def test_what_a_language_model_predicts_is_counted_too(kind, request):
    import torch

    from runs.training.build import build

    words = [*request.getfixturevalue(kind), *(["task.decode=none"] if kind == "e2e_words" else [])]
    do(words)
    (run,) = expand(words)
    lengths, items = kept_lengths(run, {})
    task = build(run, torch.device("cpu"))[0]
    for split in ("train", "dev"):
        every = range(len(task.lengths(split)))
        assert lengths[split].predicted * len(every) == pytest.approx(task.weight(split, every))
    assert items == len(getattr(task, "items", ()))


def test_the_longest_of_a_batch_and_what_is_cut_off():
    import numpy as np

    rng = np.random.default_rng(0)
    real = np.maximum(rng.gamma(2.0, 20.0, 20_000).astype(int), 3)
    known = Lengths.of(real.tolist())
    for batch in (1, 4, 16, 64):
        drawn = rng.choice(real, (20_000, batch)).max(1).mean()
        assert known.padded(batch) == pytest.approx(drawn, rel=0.02)
    cut = known.cut(50)
    assert cut.mean == pytest.approx(np.minimum(real, 50).mean(), rel=0.01)
    assert cut.padded(64) <= 50
    assert known.cut(10_000) == known
    # Of a prompt and a continuation, what is cut off is the continuation's
    assert Lengths.of([30] * 4, predicted=40).cut(24).predicted == pytest.approx(4)
    assert Lengths.of([30] * 4, predicted=8).cut(20).predicted == 0


# --- FLOPs

LAYERS = 6
SIZES = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
TEXT = {"intermediate_size": 256, "vocab_size": 100, "max_position_embeddings": 80}
MODELS = {
    "bert": {"model_type": "bert", **SIZES, **TEXT},
    "roberta": {"model_type": "roberta", **SIZES, **TEXT},
    "mpnet": {"model_type": "mpnet", **SIZES, **TEXT},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": 100},
    "llama": {"model_type": "llama", **SIZES, **TEXT, "num_key_value_heads": 2, "intermediate_size": 160},
    "vit": {"model_type": "vit", **SIZES, "intermediate_size": 256, "image_size": 64, "patch_size": 8},
    "dinov2": {"model_type": "dinov2", **SIZES, "mlp_ratio": 4, "image_size": 64, "patch_size": 8},
}
#: Settings of methods, and how far the formula's FLOPs of a training step may be beyond those that torch
#: counts.
#: The formula has the gradient run to the embeddings. Low-rank methods do not need it at the first block's
#: input, and bottlenecks not within that block, which is a sixth here; the paper's models have 12 to 40.
QV, ALL = ["query", "value"], ["all-linear"]
METHODS = {
    "full": ({"kind": "full"}, 0.015),
    "head": ({"kind": "head"}, 0.005),
    "bitfit": ({"kind": "bitfit"}, 0.02),
    "lora": ({"kind": "lora", "rank": 4, "sites": QV, "alpha": 8.0}, 0.04),
    "lora all": ({"kind": "lora", "rank": 4, "sites": ALL, "alpha": 8.0}, 0.035),
    "lora_fa": ({"kind": "lora", "rank": 4, "sites": QV, "alpha": 8.0, "freeze_a": True}, 0.04),
    "vera": ({"kind": "vera", "rank": 16, "sites": QV}, 0.04),
    "vera all": ({"kind": "vera", "rank": 16, "sites": ALL}, 0.035),
    "vera_plus": ({"kind": "vera_plus", "rank": 16, "sites": QV}, 0.04),
    "lora_xs": ({"kind": "lora_xs", "rank": 8, "sites": QV}, 0.04),
    "tied_lora": ({"kind": "tied_lora", "rank": 4, "sites": QV}, 0.04),
    "dylora": ({"kind": "dylora", "rank": 4, "sites": QV}, 0.04),
    "adalora": ({"kind": "adalora", "rank": 4, "sites": QV}, 0.04),
    "adapter_h": ({"kind": "adapter", "placement": "houlsby", "bottleneck": 8}, 0.07),
    "adapter_p": ({"kind": "adapter", "bottleneck": 8}, 0.12),
}
PAIRS = [
    (model, method)
    for model in MODELS
    for method in METHODS
    if (model, method) not in (("llama", "bitfit"), ("llama", "head"), ("gpt2", "head"))
]


@pytest.fixture
def plain_products():
    """torch's counter sees neither oneDNN's products nor the CPU's own attention."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mkldnn.enabled = before


@pytest.mark.parametrize(
    ("model", "method"),
    sample(
        PAIRS, ("roberta", "full"), ("roberta", "vera"), ("mpnet", "lora"), ("gpt2", "lora"), ("vit", "full")
    ),
)
@pytest.mark.usefixtures("plain_products")
def test_flops_are_those_that_torch_counts(model, method):
    """Forward to 1%; of a training step no fewer (to 1%), and no more than the tolerance of METHODS."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import vera
    from runs import models

    architecture, (settings, tolerance), batch_rows, length = MODELS[model], METHODS[method], 4, 64
    modality = "image" if "image_size" in architecture else "text generation" if model in LM else "text"
    outline = models.skeleton({"architecture": architecture, "modality": modality}, 2)
    network = type(outline)(outline.config)
    vera.make_method(**settings).adapt(network)
    shape = flops.shape_of(architecture)
    labels = torch.zeros(batch_rows, dtype=torch.long)
    if modality == "image":
        length, batch = (
            shape.tokens(None),
            {"pixel_values": torch.randn(batch_rows, 3, 64, 64), "labels": labels},
        )
    else:
        ids = torch.randint(5, 90, (batch_rows, length))
        batch = {"input_ids": ids, "labels": ids if model in LM else labels}
    network.train()
    with FlopCounterMode(display=False) as forward:
        loss = network(**batch).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    formula = flops.work(shape, settings, length, batch_rows, length if model in LM else 0)
    counted = forward.get_total_flops(), backward.get_total_flops()
    assert formula.forward * batch_rows == pytest.approx(counted[0], rel=0.01)
    ratio = formula.training * batch_rows / sum(counted)
    assert 0.99 < ratio < 1 + tolerance


LM = ("gpt2", "llama")


def test_frozen_is_2n_and_full_4n_backward_and_a_checkpoint_costs_a_forward_pass():
    """Without attention's part, for a row of one token: 2 N forward."""
    shape = flops.shape_of(MODELS["roberta"])
    forward = 2 * shape.weights + 4 * LAYERS * 64
    assert shape.weights == LAYERS * (4 * 64 * 64 + 2 * 64 * 256)
    for settings, weights in ((METHODS["full"][0], 4), (METHODS["bitfit"][0], 2)):
        once = flops.work(shape, settings, 1, 1, 0)
        assert once.forward == forward
        assert once.training == forward + weights * shape.weights + 8 * LAYERS * 64
        again = flops.work(shape, settings, 1, 1, 0, again=True)
        assert again.training == once.training + forward


def test_veras_flops_are_those_of_the_kernels():
    from vera import kernels

    for tokens, inputs, outputs, rank in ((64, 64, 128, 16), (4096, 768, 1536, 1024), (700, 96, 96, 8)):
        for training in (False, True):
            chosen = kernels.choose(tokens, inputs, outputs, rank, training)
            expected = kernels.flops(chosen, tokens, inputs, outputs, rank, training)
            assert flops.vera_flops(tokens, inputs, outputs, rank, training) == expected


ARCHITECTURES = sorted(
    path.stem for path in (CONF / "model").glob("*.yaml") if "architecture:" in path.read_text()
)


@pytest.mark.parametrize("name", sample(ARCHITECTURES, "minilm", "mpnet_base", "gpt2_medium"))
def test_n_is_the_architectures(name):
    """The weights of the linear layers of its blocks, built without weights."""
    from runs import models
    from vera.sites import find_sites, size

    words = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    network = models.skeleton(words, 0 if words["modality"] == "text generation" else 2)
    linear = sum(
        math.prod(size(network.get_submodule(path))) for path in find_sites(network, ("all-linear",))
    )
    shape = flops.shape_of(words["architecture"])
    assert shape.weights - shape.patch * shape.hidden == linear
    assert shape.hidden * (shape.vocabulary or 1) <= sum(p.numel() for p in network.parameters())


# --- words


def plan_of(words, **more):
    runs = expand(words)
    ledger = read_ledger(output_of(words), published=False)
    return plan.text(plan.plan(runs, ledger), ledger, **more)


@pytest.mark.usefixtures("new_cache")
def test_the_plan_of_table_2_says_what_it_takes_and_needs_no_torch(tmp_path):
    runs = expand(["experiment=table2_base", f"output={tmp_path}"])
    planned = plan.plan(runs, Ledger())
    began = time.process_time()
    text = plan.text(planned, Ledger())
    assert time.process_time() - began < 0.5  # some 0.05 s on an idle machine
    # Epochs of the paper's tables, rows as published: by hand for one cell, VeRA on RTE
    (cell,) = [run for run in runs if (run.row, run.task, run.seed) == ("vera", "rte", 0)]
    assert outline(cell, Sources()).steps == 160 * math.ceil(2490 / 64)
    total = sum(outline(run, Sources()).steps for run in runs if run.seed == 0) * 5
    assert f"forecast for 180 runs: {total:,} steps, " in text
    assert "tokens, " in text
    assert "FLOP\n" in text
    assert "rows of data are known; lengths assumed: as published, in GPT-2's tokens (conf/rows.yaml)" in text
    assert "no estimate of time: probe=true measures this device" in text
    assert "6 rows" in text
    assert "est. " not in text


@pytest.mark.usefixtures("new_cache")
def test_nothing_is_claimed_where_nothing_is_known(words, tmp_path, tiny_bert):
    # No row counts: a data set of the hub that nobody has described
    runs = expand(
        ["model=minilm", "task=text", "task.hub=nobody/knows", "task.revision=" + "0" * 40, "task.name=mine"]
    )
    assert cost.forecast(runs, []) == [
        "no estimate: no finished run is like these, and how many rows of data they have is not known here"
    ]
    # Rows, and no lengths
    (mnli,) = expand(["model=roberta_base", "task=mnli", "method=lora"])
    known = outline(mnli, Sources())
    assert (known.steps, known.exact) == (
        math.ceil(392702 / mnli.config["train"]["effective_batch"]) * mnli.config["train"]["epochs"],
        True,
    )
    assert (known.tokens, known.flops, known.seconds) == (None, None, None)
    lines = cost.forecast([mnli], [])
    assert "tokens" not in lines[0]
    assert "FLOP" not in lines[0]
    assert lines[-1].startswith("no estimate of time: the model's architecture or the lengths of the data")
    # Lengths, and no architecture that is known
    folder = tmp_path / "odd"
    folder.mkdir()
    for path in tiny_bert.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    odd = json.loads((folder / "config.json").read_text()) | {"model_type": "electra"}
    (folder / "config.json").write_text(json.dumps(odd))
    (run,) = expand(elsewhere(words, **{"model.path": folder}))
    known = outline(run, Sources())
    assert known.steps == 10
    assert known.tokens
    assert known.flops is None
    # A copy that is too large to count has the published rows, and the plan says so
    (run,) = expand(words)
    rows_before, rows.QUICK_BYTES = rows.QUICK_BYTES, 0
    try:
        assert not outline(run, Sources()).exact
        assert "rows of data are about right: not counted here" in "\n".join(cost.forecast([run], []))
    finally:
        rows.QUICK_BYTES = rows_before


def test_the_time_of_a_probe_is_each_rows_and_all_of_theirs(words, new_cache):
    one, *_ = both = expand([*elsewhere(words), "method=lora,vera"])
    assert "for each of 1 row (about 20s)" in cost.forecast([one], [])[-1]
    assert cost.forecast(both, [])[-1].endswith("for each of 2 rows (about 20s each, 40s in all)")


def test_large_numbers_in_words():
    assert [cost.magnitude(n) for n in (812, 4_210, 81_250_000, 6.2e9)] == ["812", "4.2K", "81M", "6.2B"]
    assert [cost.magnitude(n, flops=True) for n in (5, 5.1e18, 4.4e17)] == ["5 ", "5.1 E", "440 P"]


# --- the probe


def test_a_pace_is_the_line_through_two_steps():
    from runs.probe import pace as line

    assert line({100: 2.0, 400: 5.0}) == pace.Pace(pytest.approx(1.0), pytest.approx(0.01))
    assert line({100: 2.0}) == pace.Pace(0.0, 0.02)
    # A large step that was as quick as the small one, or slower than its tokens: through zero
    assert line({100: 2.0, 400: 2.0}) == pace.Pace(0.0, 0.005)
    assert line({100: 1.0, 400: 8.0}) == pace.Pace(0.0, 0.02)


class Room:
    """Steps on a device that has room for so many tokens; a step takes a second, and a token 1 ms."""

    def __init__(self, most):
        self.most, self.count, self.now = most, 0, 0.0

    def size(self, tokens):
        return max(tokens // 10, 1) * 10

    def clear(self):
        import sys

        assert sys.exc_info() == (None, None, None)  # or its traceback would hold the step's memory

    def __call__(self, tokens):
        import torch

        if tokens > self.most:
            raise torch.OutOfMemoryError
        self.count += 1
        self.now += 1 + tokens / 1000
        return 1 + tokens / 1000


@pytest.mark.parametrize(
    ("most", "limit", "larger"), [(9_000, 100, 7_680), (700, 100, 480), (9_000, 12, 480)]
)
def test_the_larger_step_has_what_memory_and_time_have_room_for(most, limit, larger, monkeypatch):
    from runs import probe

    step = Room(most)
    monkeypatch.setattr("runs.probe.time.monotonic", lambda: step.now)
    tokens = probe._largest(step, 20_000, limit)
    assert tokens == larger
    times = probe._times(step, tokens, limit)
    assert sorted(times) == [tokens // 4, tokens]
    assert step.count <= cost.PROBE_STEPS
    measured = probe.pace({size: seconds[0] for size, seconds in times.items()})
    assert (measured.step, measured.token) == (pytest.approx(1.0), pytest.approx(0.001))


def test_a_step_that_no_longer_fits_is_halved():
    """Memory that was free when sizes were tried may be taken since."""
    from runs import probe

    step = Room(300)
    times = probe._times(step, 1_000, math.inf)
    assert max(times) == 250
    with pytest.raises(RuntimeError):
        probe._times(Room(5), 1_000, math.inf)


PROBED = ["words", "e2e_words", "alpaca_words", "image_words"]


@pytest.mark.parametrize("kind", PROBED)
@pytest.mark.usefixtures("new_cache")
def test_a_probe_brings_time_and_a_finished_run_a_better_one(kind, request, monkeypatch, capsys):
    """For real: a tiny model trains some steps; its weights are never read."""
    words = request.getfixturevalue(kind)
    from runs import models

    monkeypatch.setattr("runs.probe.PROBE_SECONDS", 3)
    words = [*words, *(["task.decode=none"] if kind == "e2e_words" else [])]
    assert ("lengths assumed" if kind != "image_words" else "model's patches") in plan_of(words)
    with monkeypatch.context() as none:
        none.setattr(models, "fetch", None)
        none.setattr(models, "load", None)
        text = plan_of(words, probe=True)
    assert "probe 1/1: VeRA r=8" in capsys.readouterr().out
    assert "est. " in text
    assert "left on one device: forecast, from a probe of this device" in text
    assert "no estimate" not in text
    (run,) = expand(words)
    measured = pace.pace_of(run)
    assert measured.token > 0
    known = outline(run, Sources())
    assert known.seconds >= known.tokens * measured.token
    # Kept: nothing is measured twice, and another row has a pace of its own
    plan_of(words, probe=True)
    assert "every row has been measured" in capsys.readouterr().out
    other = plan_of([*words, "method.rank=4"])
    assert "no estimate of time: probe=true" in other
    # A finished run says better
    record = trained(words)
    both = plan_of([*words, "seed=1"])
    assert "(from 1 finished run)" in both
    assert "forecast" not in both
    assert record["status"] == "done"


@pytest.mark.parametrize("method", sample(["head", "full", "none", "bitfit", "adalora"], "none", "full"))
@pytest.mark.usefixtures("new_cache")
def test_every_kind_of_row_is_probed(method, words, monkeypatch, capsys):
    monkeypatch.setattr("runs.probe.PROBE_SECONDS", 2)
    plain = [*(w for w in words if not w.startswith("method.")), f"method={method}"]
    assert "forecast, from a probe" in plan_of(plain, probe=True)
    out = capsys.readouterr().out
    assert "left out" not in out
    assert int(out.partition(" steps of")[0].rpartition(" ")[2]) <= cost.PROBE_STEPS


@pytest.mark.usefixtures("new_cache")
def test_what_cannot_be_probed_is_named_and_the_plan_goes_on(words, monkeypatch, capsys):
    monkeypatch.setattr("runs.models.free_memory", lambda device: 1000.0)
    text = plan_of(words, probe=True)
    assert "left out (it takes " in capsys.readouterr().out
    assert "no estimate of time: probe=true" in text
    plan_of([*words, "task.dev_rows=1"], probe=True)
    assert "left out (the dev set has 1 row" in capsys.readouterr().out


@pytest.mark.usefixtures("new_cache")
def test_probe_is_a_setting_of_the_command(words, monkeypatch):
    monkeypatch.setattr("runs.probe.PROBE_SECONDS", 2)
    done = call_here("runs.plan", *words, "probe=true", check=0).stdout
    assert done.index("probe 1/1") < done.index("forecast for 1 run")
    assert "from a probe of this device" in call_here("runs.plan", *words, check=0).stdout
    trained(words)  # a watch ends where nothing is left
    watched = call_here("runs.plan", *words, "probe=true", "watch=true", check=0).stdout
    assert "nothing left to do" in watched
    assert "every row has been measured" in watched


@pytest.mark.usefixtures("new_cache")
def test_seconds_follow_from_the_pace(words):
    """By hand: 40 rows, two epochs, batches of 8 as they are; of evaluation the forward pass's share."""
    do(words)
    (run,) = expand(words)
    only_steps = outline(run, Sources(), pace.Pace(1.0, 0.0))
    shape, settings = shape_of_run(run), run.method
    data = known_data(run, Sources())
    padded = data.train.cut(32).padded(8, 8)
    one = flops.work(shape, settings, padded, 8, 0)
    share = one.forward / one.training
    assert only_steps.seconds == pytest.approx(10 + 2 * share)
    doubled = copy.copy(run)
    doubled.config["micro_batch"] = 4
    assert outline(doubled, Sources(), pace.Pace(1.0, 0.0)).seconds == pytest.approx(20 + 2 * share, rel=0.02)
    tokens = outline(run, Sources(), pace.Pace(0.0, 1.0)).seconds
    assert tokens > 2 * 40 * data.train.mean


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A machine with two cards of one name, where nothing has been measured; writes what gpu-check has found
    on such a card."""
    monkeypatch.setattr(pace, "machine", lambda device: {"cards": [] if device == "cpu" else CARDS})

    def found(*paces):
        path = tmp_path / f"gpu{len(list(tmp_path.glob('gpu*')))}.json"  # a file is read once
        path.write_text(json.dumps({"paces": list(paces)}))
        monkeypatch.setattr(pace, "GPU_CHECK", path)

    return found


CARDS = ["Card 80GB", "Card 80GB", "all"]


@pytest.mark.usefixtures("new_cache")
def test_a_pace_may_be_of_another_card_of_the_same_name(card, monkeypatch, tmp_path):
    """As gpu-check has measured it: by card, model, row and precision. The plan says where it comes from."""
    words = ["experiment=table2_base", "task=rte", "method=vera,lora", "seed=0", f"output={tmp_path / 'o'}"]
    vera, lora = expand(words)
    key = {name: value for name, value in pace.pace_key(vera).items() if name != "machine"}
    entry = {"card": "Card 80GB", "key": json.loads(json.dumps(key)), "step": 0.015, "token": 1e-6}
    card(entry)
    source = "gpu-check's steps on another Card 80GB (docs/gpu.json)"
    assert pace.pace_of(vera) == pace.Pace(0.015, 1e-6, source)
    steps = 160 * math.ceil(2490 / 64)
    assert outline(vera, Sources()).seconds > 0.015 * steps
    text = plan_of(words)
    assert f"left on one device for 1 of these 2 runs: forecast, from {source}\n" in text
    assert "no estimate of time for the others: probe=true measures this device" in text
    # Of another row, precision, device or card it says nothing
    assert pace.pace_of(lora) is None
    for other in (["train.precision=bf16"], ["device=cpu"], ["gradient_checkpointing=true"]):
        assert pace.pace_of(expand([*words, *other])[0]) is None
    for cards in (["Card 24GB", "all"], ["Card 80GB", "Card 24GB", "all"]):
        monkeypatch.setattr(pace, "machine", lambda device, cards=cards: {"cards": cards})
        assert pace.pace_of(vera) is None
    # What was measured here comes first, and is what a probe looks for
    monkeypatch.setattr(pace, "machine", lambda device: {"cards": CARDS})
    assert pace.pace_here(vera) is None
    pace.keep_pace(vera, pace.Pace(0.5, 0.25), {})
    assert pace.pace_of(vera) == pace.pace_here(vera) == pace.Pace(0.5, 0.25)
    assert pace.Pace(0.5, 0.25).source == "a probe of this device"


@pytest.mark.usefixtures("new_cache")
@pytest.mark.parametrize(
    "bad", [None, "a", {}, {"card": ["Card"]}, {"step": -1.0}, {"token": math.nan}, {"step": "x"}]
)
def test_a_damaged_pace_of_a_card_is_none(bad, card, monkeypatch):
    (run,) = expand(["model=roberta_base", "task=rte", "method=vera", "seed=0"])
    key = {name: value for name, value in pace.pace_key(run).items() if name != "machine"}
    good = {"card": "Card 80GB", "key": key, "step": 0.5, "token": 0.25}
    card(bad if not isinstance(bad, dict) or not bad else good | bad)
    assert pace.pace_of(run) is None
    card(bad if not isinstance(bad, dict) or "card" in bad else {}, good)  # the others stand
    assert pace.pace_of(run).step == 0.5
    monkeypatch.setattr(pace, "GPU_CHECK", pace.GPU_CHECK.parent / "none.json")
    assert pace.pace_of(run) is None


def test_a_damaged_pace_is_none(words, new_cache):
    (run,) = expand(words)
    pace.keep_pace(run, pace.Pace(0.5, 0.25), {})
    assert pace.pace_of(run) == pace.Pace(0.5, 0.25)
    for bad in ("", "[]", '{"pace": {"step": -1, "token": 1}}', '{"pace": {"step": NaN, "token": 1}}'):
        pace._path(run).write_text(bad)
        assert pace.pace_of(run) is None


@pytest.mark.parametrize("preset", ["table2_base", "table3_medium", "table4_llama_7b", "table5_base"])
@pytest.mark.usefixtures("process")
def test_the_command_forecasts_each_kind_of_task_without_torch(preset, tmp_path):
    code = "import sys; from runs.plan import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, f"experiment={preset}", f"output={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "FLOP\n" in done.stdout
    assert done.stdout.endswith("False\n")
