"""What is known of a run before it: its parameters, steps, tokens, FLOPs and hours.
Each is held against what the papers, real runs, real tokens and torch itself count."""

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from running import ROOT, TRAINING, begin, call_here, output_of, refused, trained
from tiers import slow_except
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import vera
from analysis.facts import model_of
from runs import counts, models, plan
from runs.command.errors import UserError
from runs.config import CONF, expand
from runs.forecast import data, pace, probe, work
from runs.forecast.data import LENGTH_SHARES, Lengths, planned_rows
from runs.forecast.pace import Planned
from runs.forecast.work import outline
from runs.record.folder import RecordFolder
from runs.record.ledger import read_study, run_folder
from runs.record.steps import StepPlan
from runs.record.text import duration, rounded
from runs.run import methods
from runs.run.definition import epoch_batches
from runs.run.identity import run_id
from tasks import e2e, glue, images, instruct
from tasks.exact import FILLER_TOKENS

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def new_cache(monkeypatch, tmp_path):
    """A user's cache in which nothing was counted or measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


#: Of a model that is not here.
SMALL_MODEL = "model.architecture.num_hidden_layers=1"


def plan_of(words, **more):
    runs = expand(words)
    records = RecordFolder(output_of(words))
    return plan.plan_text(plan.plan(runs, records), records, **more)


# --- parameters

ENTRIES = yaml.safe_load((CONF / "counts.yaml").read_text())


FEW = [("roberta_base", "vera"), ("vit_base", "lora"), ("gpt2_medium", "full")]


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_count_is_exact_and_a_difference_is_a_non_zero_exit(
    few, monkeypatch, capsys
):
    """Of 37 skeletons of large models, or of a few."""
    entries = [
        entry
        for entry in ENTRIES
        if not few or (entry["model"], entry["method"]) in FEW
    ]
    monkeypatch.setattr(counts, "in_conf", {"counts.yaml": entries}.get)
    assert counts.main([]) == 0
    printed = capsys.readouterr().out
    assert [entry for entry in entries if f"{entry['count']:,}" not in printed] == []
    assert f"{len(entries)} counts, 0 wrong" in printed
    monkeypatch.setattr(
        counts, "count_of_entry", lambda entry: (8, entry["count"], entry["count"] + 1)
    )
    assert (counts.main([]), "DIFFERS" in capsys.readouterr().out, len(ENTRIES)) == (
        1,
        True,
        37,
    )


# --- steps and rows

#: Fixtures of small runs, and what is changed in them.
SMALL = [
    ("words", ("train.max_steps=7", "task.holdout=0.3")),
    (
        "words",
        (
            "task.train_rows=19",
            "task.dev_rows=9",
            "train.effective_batch=4",
            "micro_batch=2",
        ),
    ),
    ("alpaca_words", ()),
    ("e2e_words", ("task.decode=none", "task.train_rows=5")),
    ("image_words", ("task.shots=3", "task.holdout=0.5", "train.epochs=3")),
]


@pytest.mark.parametrize(("kind", "changes"), slow_except(SMALL, SMALL[0], SMALL[4]))
def test_steps_and_rows_are_those_of_the_run(kind, changes, request):
    """From its files alone."""
    (run,) = expand([*request.getfixturevalue(kind), *changes])
    train, dev, _ = planned_rows(json.dumps(run.config["task"]))
    steps, training = outline(run).steps, begin(run)
    assert steps == training.plan.total_steps
    assert (train.rows, dev.rows) == (
        len(training.lengths),
        len(training.task.lengths("dev")),
    )


def test_the_table_has_the_rows_that_the_tasks_know():
    table = yaml.safe_load((CONF / "rows.yaml").read_text())
    for name, spec in glue.SPECS.items():
        assert tuple(table[name]["rows"].values()) == spec.rows
    assert table["e2e"]["rows"] == {
        split: e2e.ROWS[split] for split in ("train", "dev")
    }
    assert table["alpaca"]["rows"]["train"] == instruct.PUBLISHED
    for name, (classes, train, test) in images.task.PUBLISHED.items():
        assert (table[name]["classes"], *table[name]["rows"].values()) == (
            classes,
            train,
            test,
        )
    for entry in table.values():
        for values in entry.get("tokens", {}).values():
            assert len(values["at"]) == len(LENGTH_SHARES)
            assert values["at"] == sorted(values["at"])


def test_published_runs_took_the_steps_and_about_the_tokens_that_the_table_says():
    """The table's lengths are GPT-2's, the runs' are WordPieces: a tenth fewer or
    more."""
    table, seen = yaml.safe_load((CONF / "rows.yaml").read_text()), 0
    for record in read_study(ROOT / "runs" / "records" / "glue_minilm"):
        config, entry, steps = (
            record["config"],
            table.get(record["config"]["task"]["name"]),
            record["steps"],
        )
        if (
            record["status"] != "done"
            or not steps
            or entry is None
            or config["task"].get("holdout")
        ):
            continue
        train, _ = data._published_rows(config["task"], entry)
        where = StepPlan.of_run(config["train"], train.rows)
        assert where.total_steps == steps, record["id"]
        epochs, rest = divmod(steps, where.steps_per_epoch)
        if not rest:
            tokens = (
                record["cost"]["tokens_per_second"] * record["cost"]["train_seconds"]
            )
            lengths = np.interp(
                data.SAMPLE_SHARES, LENGTH_SHARES, entry["tokens"]["train"]["at"]
            )
            length = Lengths(1, lengths).cut_to(config["train"]["max_length"]).mean
            assert epochs * train.rows * length == pytest.approx(tokens, rel=0.11), (
                record["id"]
            )
            seen += 1
    assert seen >= 10


# --- tokens


def test_the_longest_of_a_batch_and_what_is_cut_off():
    rng = np.random.default_rng(0)
    real = np.maximum(rng.gamma(2.0, 20.0, 20_000).astype(int), 3)
    known = Lengths(len(real), real, 10.0)
    for batch in (1, 4, 16, 64):
        drawn = rng.choice(real, (20_000, batch)).max(1).mean()
        assert known.padded_mean(batch) == pytest.approx(drawn, rel=0.02)
    batches = epoch_batches(real.tolist(), 8, 0, 0, 8)  # of like lengths
    padded = sum(len(batch) * max(real[batch]) for batch in batches) / len(real)
    assert known.padded_mean(8, 8) == pytest.approx(padded, rel=0.06)
    cut = known.cut_to(50)
    assert cut.mean == pytest.approx(np.minimum(real, 50).mean(), rel=0.01)
    assert cut.padded_mean(64) <= 50
    # Of a prompt and a continuation, what is cut off is the continuation's
    assert cut.predicted == pytest.approx(max(10 - (known.mean - cut.mean), 0))
    assert known.cut_to(10_000).mean == known.mean


def test_lengths_of_ones_own_texts_are_guessed_from_their_characters(words, tmp_path):
    rows = ["text,label", *(f"{'word ' * (2 + n % 3)}{n},{n % 2}" for n in range(40))]
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    plain = [word for word in words if not word.startswith("task")]
    file = tmp_path / "mine.csv"
    own = [
        "task=text",
        "task.name=mine",
        f"task.train_file={file}",
        "task.text=text",
        "task.holdout=0.25",
    ]
    (run,) = expand([*plain, *own, "task.label_column=label"])
    train, dev, basis = planned_rows(json.dumps(run.config["task"]))
    assert train.rows + dev.rows == 36  # four are dev rows without it
    assert train.mean == pytest.approx(17 / 4 + 3, rel=0.1)
    assert basis == "rows counted; lengths assumed, four characters a token"


# --- FLOPs

LAYERS = 3
SIZES = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
TEXT = {"intermediate_size": 256, "vocab_size": 100, "max_position_embeddings": 80}
MODELS = {
    "bert": {"model_type": "bert", **SIZES, **TEXT},
    "roberta": {"model_type": "roberta", **SIZES, **TEXT},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": LAYERS,
        "n_head": 4,
        "vocab_size": 100,
    },
    "llama": {
        "model_type": "llama",
        **SIZES,
        **TEXT,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
    },
    "vit": {
        "model_type": "vit",
        **SIZES,
        "intermediate_size": 256,
        "image_size": 64,
        "patch_size": 8,
    },
}
FAMILIES = {"gpt2": "text generation", "llama": "text generation", "vit": "image"}
BOFT = "method=peft method.config_class=BOFTConfig method.config={boft_block_size:4}"
PAIRS = [
    ("roberta", "method=full"),
    ("bert", BOFT),
    ("gpt2", "method=lora"),
    ("vit", "method=head"),
]
PAIRS += [("llama", "method=vera method.path=factor")]


@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_flops_are_those_that_torch_counts_of_the_whole_model_with_weights(
    model, method
):
    """Not on meta, not of two blocks: torch's counter on a real pass. It sees neither
    oneDNN's products nor the CPU's own attention."""
    base = {"text generation": "gpt2_medium", "image": "vit_base"}.get(
        FAMILIES.get(model), "roberta_base"
    )
    task = {"text generation": "e2e", "image": "cifar100"}.get(
        FAMILIES.get(model), "rte"
    )
    (run,) = expand([f"model={base}", f"task={task}", *method.split()])
    run = replace(
        run,
        config=run.config
        | {"model": run.config["model"] | {"architecture": MODELS[model]}},
    )
    batch_rows, length, predicted = 4, 32, 10 if task == "e2e" else 0
    counted = methods.count_flops(run, batch_rows, length, predicted)
    outline = models.skeleton(
        run.config["model"], methods.SKELETON_LABELS[run.config["model"]["modality"]]
    )
    network = type(outline)(outline.config).train()
    vera.make_method(**run.method).adapt(network)
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as forward:
                logits = methods.run_forward(
                    network, batch_rows, length, predicted, None
                )
            with FlopCounterMode(display=False) as backward:
                logits.sum().backward()
    finally:
        torch.backends.mkldnn.enabled = before
    both = forward.get_total_flops() + backward.get_total_flops()
    assert counted == pytest.approx((forward.get_total_flops(), both), rel=1e-3)
    weights = sum(p.numel() for p in network.parameters() if p.dim() == 2)
    assert counted[0] > batch_rows * length * weights / 2  # no layer was skipped


def test_counts_are_kept_and_what_cannot_be_counted_is_named(monkeypatch):
    words = ["model=roberta_base", "task=rte", "seed=0", SMALL_MODEL]
    (vb,) = expand([*words, "method=peft", "method.config_class=VBLoRAConfig"])
    assert outline(vb).flops == 0
    (lora,) = expand([*words, "method=lora"])
    first = outline(lora)
    monkeypatch.setattr(
        methods, "run_forward", lambda *_: pytest.fail("it was counted before")
    )
    assert outline(lora) == first
    lines = pace.estimate(
        [Planned(vb, "missing"), Planned(lora, "missing")], RecordFolder("nowhere")
    )
    assert "FLOPs are not known of peft_vblora" in lines


def test_a_plan_counts_the_tokens_of_demonstrations(sums_words):
    words = ["train.objective=demonstrations", *sums_words]
    (demonstrations,) = expand(words)
    (answers,) = expand(sums_words)
    training = begin(demonstrations)
    rows, epochs = len(training.lengths), training.plan.epochs
    more = outline(demonstrations).tokens - outline(answers).tokens
    assert more == pytest.approx(rows * epochs * FILLER_TOKENS)
    assert sum(training.lengths) - sum(begin(answers).lengths) == rows * FILLER_TOKENS


def test_a_plan_counts_every_evaluation_between_steps(words):
    (each_epoch,) = expand(words)
    (at_the_end,) = expand([*words, "train.evaluate_every=2"])
    (each_step,) = expand([*words, "train.evaluate_steps=1"])
    plan = outline(each_epoch)
    flops_of_evaluation = plan.flops - outline(at_the_end).flops
    more = outline(each_step).flops - plan.flops
    assert flops_of_evaluation > 0
    assert more == pytest.approx((plan.steps - 2) * flops_of_evaluation)


def test_a_plan_by_reward_counts_what_checkpointing_computes_again(sums_words):
    words = [*sums_words, "train.objective=reward"]
    (run,) = expand(words)
    (recomputing,) = expand([*words, "gradient_checkpointing=true"])
    assert outline(recomputing).step_flops > outline(run).step_flops


# --- what the plan says


def test_the_plan_of_a_row_of_table_2(tmp_path):
    words = [
        "experiment=table2_base",
        "method=vera",
        "task=rte",
        f"output={tmp_path}",
        SMALL_MODEL,
    ]
    (cell, *_) = runs = expand(words)
    known = outline(cell)
    # epochs of the paper's tables, rows as published
    assert known.steps == 160 * math.ceil(2490 / 64)
    text = plan_of(words)
    assert f"forecast for 5 runs: {5 * known.steps:,} steps, " in text
    assert f"{5 * known.flops:.1e} FLOP".replace("e+", "e") in text
    assert "no estimate of time: no rate of 1 row (probe=true: " in text
    assert "est. " not in text
    flops = len(runs) * known.flops
    hours = plan_of(words, card="H100")
    assert (
        f"est. {duration(flops / 26.8e12)} left on one H100 (FLOPs at a rate that conf/cards"
        in hours
    )
    with refused("no card 'H1'. ", "H100, A100"):
        plan_of(words, card="H1")


def test_nothing_is_claimed_where_nothing_is_known():
    # No row counts: a data set of the hub that nobody has described
    words = f"model=minilm task=text task.hub=nobody/knows task.revision={'0' * 40} task.name=mine"
    text = pace.estimate(
        [Planned(run, "missing") for run in expand(words.split())],
        RecordFolder("nowhere"),
    )
    assert text.startswith("FLOPs are not known of vera: ")
    # Rows, and no lengths
    (mnli,) = expand(["model=roberta_base", "task=mnli", "method=lora"])
    steps = (
        math.ceil(392702 / mnli.config["train"]["effective_batch"])
        * mnli.config["train"]["epochs"]
    )
    assert outline(mnli) == work.Outline(steps, "rows as published (conf/rows.yaml)")
    text = pace.estimate([Planned(mnli, "missing")], RecordFolder("nowhere"))
    assert (" tokens" in text, "FLOPs are not known of lora" in text) == (False, True)


# --- decoding


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_decoding_reads_the_weights_for_each_token_of_a_batch(
    precision, sums_words, tiny_llama
):
    """Six texts in batches of 2, of the last epoch and of the best."""
    words = [*sums_words, "train.max_length=16", f"train.precision={precision}"]
    (run,) = expand(words)
    values = sum(
        of.numel()
        for of in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters()
    )
    known, longest = outline(run), run.config["task"]["max_new_tokens"]
    assert known.decoding_bytes == 2 * (6 / 2) * longest * values * (
        8 if precision == "bf16" else 4
    )
    assert known.prompt_flops > 0
    rates = yaml.safe_load((CONF / "cards.yaml").read_text())["H100"]
    hours = pace.estimate([Planned(run, "missing")], RecordFolder("nowhere"), "H100")
    seconds = (known.flops + known.prompt_flops) / rates[
        precision
    ] + known.decoding_bytes / rates["memory"]
    assert f"est. {duration(seconds)} left on one H100" in hours
    assert (
        "decoding is not in it" in hours,
        "decoding is not in it" in plan_of(words),
    ) == (False, True)
    (without,) = expand([*words, "task.decode=none"])
    assert (outline(without).decoding_bytes, outline(without).flops) == (0, known.flops)


def test_how_many_texts_are_decoded(e2e):
    def texts(**task):
        return data.count_decoded_texts(
            json.dumps({"decode": "test", "items": None} | task)
        )

    both = {"name": "gsm8k", "tests": ["gsm8k", "math"]}
    assert (texts(**both), texts(**both, items=100)) == (1319 + 5000, 200)
    assert [texts(name="e2e", decode=of) for of in ("test", "dev", "none")] == [
        630,
        547,
        0,
    ]
    (own,) = expand(
        ["model=gpt2_medium", "task=e2e", "task.name=mine", f"task.data_dir={e2e}"]
    )
    assert texts(**own.config["task"]) == 3


# --- hours


@pytest.mark.parametrize(
    "kind", slow_except(["words", "e2e_words", "image_words"], "words")
)
def test_a_probe_brings_time_and_a_finished_run_a_better_one(
    kind, request, monkeypatch
):
    """For real: 20 steps of the run."""
    words = request.getfixturevalue(kind)
    words = [*words, *(["task.decode=none"] if kind == "e2e_words" else [])]
    out, (run,) = (
        call_here("runs.plan", *words, "probe=true", check=0).stdout,
        expand(words),
    )
    assert not (Path(output_of(words)) / "records").exists()
    flops, _ = pace.rate_of(run, [])
    assert f"est. {duration(outline(run).flops / flops)} left" in out
    # Another row has a rate of its own
    assert "no estimate of time: no rate of 1 row" in plan_of([*words, "method.rank=4"])
    # A finished run says better, of its own cell and of others on this device
    monkeypatch.setattr(pace, "LEAST_STEPS", 1)
    trained(words)
    assert "(at the pace of 1 finished run)" in plan_of([*words, "seed=1"])
    fewer = "task.shots=2" if kind == "image_words" else "task.train_rows=6"
    assert "the rate of 1 finished run of other cells" in plan_of(
        [*words, "method.rank=4", fewer]
    )


def test_the_rate_of_a_much_smaller_model_is_no_rate_of_a_larger_one(
    words, monkeypatch
):
    """Its steps are mostly overhead, and if they are not, as with large batches, its
    products are too small to fill a processor."""
    monkeypatch.setattr(pace, "LEAST_STEPS", 1)
    record = trained(words)
    (again,) = expand([*words, "method.rank=4"])
    assert pace.rate_of(again, [record]).flops > 0
    data = [word for word in words if word.startswith("task")]
    large = ["model=roberta_base", "device=cpu", "train.precision=fp32", "method=vera"]
    (run,) = expand([*large, *data, "seed=0"])
    assert outline(run).step_flops > 1000 * outline(again).step_flops
    for least_share in (pace.LEAST_SHARE, 0.0):
        monkeypatch.setattr(pace, "LEAST_SHARE", least_share)
        assert pace.rate_of(run, [record]) is None
    # nor does a large model tell of a small one
    assert not pace._are_of_like_size(22_000_000, 125_000_000)
    assert not pace._are_of_like_size(125_000_000, 22_000_000)
    assert pace._are_of_like_size(109_000_000, 125_000_000)
    assert not pace._are_of_like_size(125_000_000, None)


def test_the_rate_of_a_few_steps_is_no_rate(words):
    record = trained(words)
    assert record["steps"] < pace.LEAST_STEPS
    (again,) = expand([*words, "method.rank=4"])
    assert pace.rate_of(again, [record]) is None
    assert pace.rate_of(again, [record | {"steps": pace.LEAST_STEPS}]).flops > 0


def test_models_of_two_folders_are_not_of_one_cell_if_their_sizes_differ(
    words, tmp_path
):
    """Both are called encoder, and a plan took the time of the small one for the
    large."""
    record = trained(words)
    (run,) = expand([*words, "seed=1"])
    assert pace._finished_like(run, [record]) == [record]
    folder = Path(run.config["model"]["path"])
    large = tmp_path / "large"
    shutil.copytree(folder, large)
    content = json.loads((folder / "config.json").read_text())
    content["intermediate_size"] *= 2
    (large / "config.json").write_text(json.dumps(content))
    (other,) = expand([*words, "seed=1", f"model.path={large}"])
    assert other.model == run.model
    assert pace._finished_like(other, [record]) == []


def test_a_model_that_takes_the_place_of_another_is_counted_again(words, tmp_path):
    """The cache of FLOPs and weights knew a folder by its path alone."""
    (run,) = expand(words)
    folder = tmp_path / "replaced"
    shutil.copytree(run.config["model"]["path"], folder)
    (run,) = expand([*words, f"model.path={folder}"])
    flops, weights = methods.count_flops(run, 2, 8, 0), methods.count_weights(run)
    content = json.loads((folder / "config.json").read_text())
    content["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(content))
    assert methods.count_flops(run, 2, 8, 0)[0] > flops[0]
    assert methods.count_weights(run) > weights


def test_a_plan_says_where_the_runs_are_that_its_sums_leave_out(words):
    """A cell with a finished run needs no count of FLOPs."""
    trained(words)
    plain = [word for word in words if not word.startswith("method")]
    text = plan_of([*plain, "seed=1", "method=vera,lora"])
    assert "missing 2" in text
    assert "forecast for 1 run: " in text
    assert "  and 1 more run, timed by finished runs of the same cell" in text


def test_a_run_that_was_stopped_early_counts_only_where_no_other_is_finished(words):
    record = trained(words)
    stopped_config = record["config"] | {
        "train": record["config"]["train"] | {"max_steps": 1}
    }
    stopped = record | {"config": stopped_config}
    (run,) = expand(words)
    assert pace._finished_like(run, [stopped, record]) == [record]
    assert pace._finished_like(run, [stopped]) == [stopped]


def test_finished_runs_of_a_cell_are_outlined_once(words, monkeypatch):
    """A plan asks for the rate of each of its variants, by hundreds of records."""
    record = trained(words)
    seeds = [
        record | {"config": record["config"] | {"seed": seed, "data_seed": seed}}
        for seed in range(3)
    ]
    runs = [
        *expand([*words, "method.dropout=0.5"]),
        *expand([*words, "method.dropout=0.1"]),
    ]
    outlined = []

    def counted(run):
        outlined.append(run.row)
        return outline(run)

    monkeypatch.setattr(pace, "LEAST_STEPS", 1)
    monkeypatch.setattr(pace, "outline", counted)
    pace._outline_of_finished.cache_clear()
    rates = [pace.rate_of(run, seeds) for run in runs]
    assert {rate.source for rate in rates} == {
        "the rate of 3 finished runs of other cells"
    }
    assert len(outlined) == len(runs) + 1


def test_a_plan_and_a_table_have_one_name_for_a_model_of_a_folder(words):
    (run,) = expand(words)
    assert run.model == "encoder"
    record = trained(words)
    name = Path(run.config["model"]["path"]).name
    assert model_of(record) == name
    assert plan_of(words).splitlines()[0] == f"plan: 1 run on {name}"


@pytest.fixture
def measured(monkeypatch):
    """The labels of the runs that a probe measures; each has 20 steps of a second."""
    labels = []

    def time_steps(run):
        labels.append(run.label)
        return [1.0] * 20

    monkeypatch.setattr(probe, "_time_steps", time_steps)
    return labels


#: What a probe has kept, of an idle machine.
FIVE = '{"flops": 5.0, "label": "VeRA"}'


def others_use(cores, monkeypatch):
    """Two cores, of which other processes use so many."""
    monkeypatch.setattr(probe.OtherProcesses, "cores", lambda self: cores)
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def test_a_probe_measures_every_row_again_and_says_when_none_is_left(
    words, measured, monkeypatch
):
    """A head, and a run that trains nothing, too."""
    others_use(0.1, monkeypatch)
    plain = [word for word in words if not word.startswith("method.")]
    methods = [*plain, "method=vera,lora,head,none", "seed=0,1", "probe=true"]
    for _ in range(2):
        measured.clear()
        text = call_here("runs.plan", *methods, check=0).stdout
        assert len(measured) == 4
        assert "probe of 4 rows: 20 steps of each, or about 20s" in text
        assert "probe 4/4: " in text
        assert "busy" not in text
        assert "no estimate of time" not in text
    record = trained(words)
    text = call_here("runs.plan", *words, "probe=true", check=0).stdout
    assert text.startswith(
        "probe: nothing is measured, since every run is done or blocked\n"
    )
    assert len(measured) == 4
    call_here("runs.plan", *words, "probe=true", "redo=true", check=0)
    assert measured[4:] == [expand(words)[0].label], record["id"]


@pytest.mark.parametrize(
    ("rate", "words"), [(3.4e8, "0.34 GFLOP/s"), (2.5e12, "2.50 TFLOP/s")]
)
def test_a_slow_rate_is_shown_in_gflop(rate, words):
    assert probe._rate_text(rate) == words


def test_a_row_that_trains_nothing_is_measured_by_its_forward_pass(words):
    plain = [word for word in words if not word.startswith("method.")]
    for method in ("head", "none"):
        (run,) = expand([*plain, f"method={method}"])
        probe.probe([run])
        assert pace.rate_of(run, []).flops > 0


def test_a_probe_of_a_busy_machine_says_so_and_never_replaces_a_better_one(
    words, measured, monkeypatch
):
    (run,) = expand(words)
    (other,) = expand([*words, "method.rank=4"])
    others = [word for word in words if word != "method.rank=8"]
    arguments = [*others, "method.rank=4,8", "probe=true"]
    others_use(0.1, monkeypatch)
    call_here("runs.plan", *words, "probe=true", check=0)
    idle = pace.rate_of(run, [])
    assert idle.source == "a probe's rate"
    monkeypatch.setattr(probe, "_time_steps", lambda run: [4.0] * 20)
    others_use(0.34, monkeypatch)
    text = call_here("runs.plan", *arguments, check=0).stdout
    busy = "other processes used 0.3 of 2 cores"
    assert f"note: this machine is busy ({busy}), so these rates are too low" in text
    assert "FLOP/s of a probe on an idle machine" in text
    assert pace.rate_of(run, []) == idle
    source = f"a probe's rate while this machine was busy: {busy}"
    assert pace.rate_of(other, []).source == source
    assert source in plan_of([*words, "method.rank=4"])
    others_use(0.0, monkeypatch)
    call_here("runs.plan", *arguments, check=0)
    assert pace.rate_of(other, []).source == "a probe's rate"


def test_a_run_on_a_gpu_leaves_all_cores_but_one_to_other_processes(words, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    (on_cpu,) = expand(words)
    (on_gpu,) = expand([*words, "device=auto"])
    monkeypatch.setattr(probe.gpus, "attribute_of_all", lambda key: ["H100"])
    assert probe.busy_words(on_cpu, 0.9) == "other processes used 0.9 of 8 cores"
    assert probe.busy_words(on_gpu, 6.9) == ""
    assert probe.busy_words(on_gpu, 7.1) == "other processes used 7.1 of 8 cores"
    monkeypatch.setattr(probe.gpus, "attribute_of_all", lambda key: [])
    assert probe.busy_words(on_gpu, 0.9)


def test_what_other_processes_use_is_measured_without_the_probe_itself(monkeypatch):
    """Half of four cores were in use, and this process used one and a half."""
    with monkeypatch.context() as patches:
        patches.setattr("os.cpu_count", lambda: 4)
        patches.setattr("psutil.cpu_percent", lambda: 50.0)
        patches.setattr("time.perf_counter", iter([10.0, 12.0]).__next__)
        patches.setattr("time.process_time", iter([1.0, 4.0]).__next__)
        cores = probe.OtherProcesses().cores()
    assert cores == pytest.approx(0.5)


def test_a_process_that_computes_beside_a_probe_is_seen():
    forever = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        other_processes = probe.OtherProcesses()
        time.sleep(1.0)
        assert other_processes.cores() > 0.3
    finally:
        forever.kill()
        forever.wait()


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (310, "310"),
        (9_140, "9.1k"),
        (42_400, "42k"),
        (999_700, "1.0M"),
        (1_360_000, "1.4M"),
        (1_213e6, "1,213M"),
    ],
)
def test_a_forecast_of_few_tokens_is_no_0_million(count, words):
    assert rounded(count) == words


def test_a_probe_that_cannot_be_made_is_named_and_a_damaged_rate_is_none(
    words, monkeypatch
):
    def full(*_):
        raise UserError("no room here")

    monkeypatch.setattr("runs.training.loop.Training", full)
    rankless = [word for word in words if not word.startswith("method.rank=")]
    ranks = [*rankless, "method.rank=4,8"]
    text = call_here("runs.plan", *ranks, "probe=true", check=0).stdout
    reason = "model and data here (no room here)"
    assert text.index(reason) < text.index("no estimate of time")
    # the reason once, and no advice to do what was done
    assert (text.count(reason), text.count("left out, likewise")) == (1, 1)
    assert "probe=true" not in text
    assert "no rate of 2 rows (the probe left them out. card=H100" in text
    (run,) = expand(words)
    file = probe.rate_file(run)
    file.parent.mkdir(parents=True)
    for text in ("", "[]", '{"flops": "x"}', '{"flops": null}', '{"flops": 9.0}', FIVE):
        file.write_text(text)
        assert pace.rate_of(run, []) == (
            (5.0, "a probe's rate") if text == FIVE else None
        )


# --- what a finished run says of others, and what a checkpoint has


def test_what_is_a_measure_of_a_runs_time(words):
    """Runs of a row that takes as long a step: a head on its own has features that are
    computed once, and method=none no steps at all. By steps, and not by runs."""
    plain = [w for w in words if not w.startswith("method.")]
    for row in ("head", "none"):
        record = trained([*plain, f"method={row}"])
        (run,), (other,) = expand(words), expand([*plain, f"method={row}", "seed=1"])
        assert (
            pace._finished_like(run, [record]),
            pace._finished_like(other, [record]),
        ) == (
            [],
            [record],
        )
    record = trained([*words, "train.max_steps=2"])
    record["cost"] |= {"train_seconds": 4.0, "evaluate_seconds": 3.0}
    for more, steps in (([], 10), (["train.max_steps=2"], 2)):  # 2 epochs of 5 steps
        (run,) = expand([*words, *more])
        left = Planned(run, "missing")
        assert pace._seconds_by_finished(left, [record]) == pytest.approx(
            steps * (4.0 + 3.0) / 2
        )


def test_a_plan_says_that_tables_leave_shortened_runs_out(words):
    """Before they run, and with what to type for a short run that tables show."""
    note = "stopped early by train.max_steps: in no table (train.epochs=1 makes"
    assert note in plan_of([*words, "train.max_steps=2"])
    assert note not in plan_of(words)


def test_what_a_checkpoint_has_is_not_planned_again(words):
    """Half of the steps are saved: half of the time, of the FLOPs and of the steps is
    left."""
    (run,) = expand(words)
    record, whole = trained([*words, "seed=1"]), outline(run)
    path = (
        run_folder(output_of(words), run_id(run))
        / "attempts"
        / "a"
        / "checkpoint.safetensors"
    )
    path.parent.mkdir(parents=True)
    path.touch()
    progress = path.parents[2] / "progress.json"
    progress.write_text(json.dumps(TRAINING | {"step": whole.steps // 2}))
    (planned,) = plan.plan([run], RecordFolder("nowhere"))
    assert (planned.state, planned.progress["step"]) == ("partial", whole.steps // 2)
    assert plan.runs_to_do([planned]) == [planned]
    seconds = record["cost"]["train_seconds"] + record["cost"]["evaluate_seconds"]
    assert pace._seconds_by_finished(planned, [record]) == pytest.approx(
        seconds / 2, rel=1e-3
    )
    assert f"{whole.steps - whole.steps // 2:,} steps" in pace.estimate(
        [planned], RecordFolder("nowhere")
    )
