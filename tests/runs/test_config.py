"""From words to runs: presets, recipes as the papers print them, and one clear line for whatever is wrong."""

import sys
from pathlib import Path

import pytest
import yaml

from runs.config import CONF, choices, expand
from runs.errors import UserError

GLUE = ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"]
ROOT = Path(__file__).parents[2]


def error_of(words) -> str:
    with pytest.raises(UserError) as error:
        expand(words)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=robertta_base"], "no model 'robertta_base'. Did you mean roberta_base? Known: encoder, minilm, "),
        (["task=rtee"], "no task 'rtee'. Did you mean rte?"),
        (["method=verra"], "no method 'verra'. Did you mean vera?"),
        (["method=vera,lorra"], "no method 'lorra'. Did you mean lora?"),
        (["paper=tabel2_base"], "no paper 'tabel2_base'. Did you mean table2_base?"),
        (["trian.lr=3"], "no key 'trian.lr'. Did you mean train.lr?"),
        (["lr=3"], "no key 'lr'. Did you mean train.lr?"),
        (["method.rnk=3"], "no key 'method.rnk'. Did you mean method.rank?"),
        (["model.foo=1"], "no key 'model.foo'. model has: name, label, modality, hub, "),
        (["train.learning_rate=1"], "no key 'train.learning_rate'. train has: epochs, effective_batch, max_length, lr, "),
        (["task.train_file=x"], "no key 'task.train_file'. task has: name, label, family, "),
        (["+x=1"], "no key 'x'"),
        (["train.lr=abc"], "train.lr=abc: should be a number"),
        (["train.epochs=2.5"], "train.epochs=2.5: should be a whole number"),
        (["method.rank=abc"], "method.rank=abc: should be a whole number, such as 256"),
        (["method.rank=2.5"], "method.rank=2.5: should be a whole number"),
        (["method.sites=query"], "method.sites=query: should be a list"),
        (["task.regression=maybe"], "task.regression=maybe: should be true or false"),
        (["debug=maybe"], "debug=maybe: should be true or false"),
        (["seed=abc"], "seed=abc: should be a whole number"),
        (["seed=0,x"], "seed=x: should be a whole number"),
        (["seed=-1"], "seed=-1: should be a whole number"),
        (["train.epochs=0"], "train.epochs=0: should be at least 1"),
        (["train.lr=-1"], "train.lr=-1.0: should be a number that is not negative"),
        (["train.lr=nan"], "train.lr=nan: should be a number that is not negative"),
        (["train.schedule=step"], "train.schedule=step: should be one of linear, cosine, constant"),
        (["select=test"], "select=test: should be one of paper, unbiased"),
        (["keep=all"], "keep=all: should be one of best, last, none"),
        (["device=gpu"], "device=gpu: should be one of auto, cpu, cuda, mps"),
        (["micro_batch=0"], "micro_batch=0: should be at least 1"),
        (["model=encoder"], "model=encoder names no weights. Give model.path="),
        (["rank"], "'rank' is not KEY=VALUE"),
        (["~train.lr"], "'~train.lr' is not KEY=VALUE"),
        (["method.rank=[1"], "'method.rank=[1' is not KEY=VALUE"),
        (
            ["paper=table2_base", "model=encoder", "model.path=/x"],
            "preset table2_base has no recipe for full/encoder. Write conf/recipe",
        ),
        (["model.modality=images"], "model minilm takes images, task reviews is text"),
    ],
)
def test_a_mistake_is_one_clear_line(words, message):
    assert message in error_of(words)


def test_lists_are_sweeps_and_the_command_line_beats_the_preset():
    runs = expand(["task=rte,mrpc", "method=vera,lora", "seed=0,1,2"])
    assert len(runs) == 12
    assert [(r.task, r.row, r.seed) for r in runs[:4]] == [
        ("rte", "vera", 0),
        ("rte", "vera", 1),
        ("rte", "vera", 2),
        ("rte", "lora", 0),
    ]
    assert len(expand(["seed=range(5)"])) == 5
    narrowed = expand(["paper=table2_base", "method=vera", "task=rte", "seed=3"])
    assert [(r.row, r.task, r.seed, r.model) for r in narrowed] == [("vera", "rte", 3, "roberta_base")]
    assert expand(["paper=demo", "train.epochs=1"])[0].config["train"]["epochs"] == 1


def test_presets_are_the_tables_rows_tasks_and_seeds():
    base, large = expand(["paper=table2_base"]), expand(["paper=table2_large"])
    assert {(r.row, r.task, r.seed) for r in base} == {
        (m, t, s) for m in ("full", "bitfit", "lora", "vera") for t in GLUE for s in range(5)
    }
    assert {(r.row, r.task, r.seed) for r in large} == {(m, t, s) for m in ("lora", "vera") for t in GLUE for s in range(5)}
    assert {r.model for r in base} | {r.model for r in large} == {"roberta_base", "roberta_large"}
    assert len(expand(["paper=demo"])) == 15


PAPER = yaml.safe_load((ROOT / "analysis" / "paper" / "recipes.yaml").read_text())["glue"]


@pytest.mark.parametrize(
    ("row", "model", "printed"),
    [
        ("vera", "roberta_base", PAPER["vera"]["roberta-base"]),
        ("vera", "roberta_large", PAPER["vera"]["roberta-large"]),
        ("lora", "roberta_base", PAPER["lora"]["roberta-base"]),
        ("lora", "roberta_large", PAPER["lora"]["roberta-large-dagger"]),
    ],
)
def test_recipes_are_what_the_papers_print(row, model, printed):
    common = PAPER["common"]
    for i, task in enumerate(GLUE):
        (run,) = expand([f"model={model}", f"method={row}", f"task={task}"])
        train = run.config["train"]
        assert run.recipe == f"{row}/{model}"

        def of(key, column=i):
            value = printed[key]
            return value[column] if isinstance(value, list) else value

        assert run.config["method"]["rank"] == printed["rank"]
        assert train["effective_batch"] == of("batch")
        assert train["epochs"] == of("epochs")
        assert train["lr"] == of("lr")
        assert train["lr_head"] == of("lr_head" if "lr_head" in printed else "lr")
        assert train["max_length"] == of("max_length")
        assert (train["warmup_ratio"], train["schedule"]) == (common["warmup_ratio"], common["schedule"])
        if row == "vera":
            assert (run.config["method"]["d_init"], run.config["method"]["init"]) == (0.1, "kaiming_uniform")
        else:
            assert run.config["method"]["alpha"] == printed["alpha"]


def test_the_projection_seed_is_zero_for_every_seed_and_the_data_seed_follows():
    for run in expand(["seed=0,4"]):
        assert run.config["method"]["projection_seed"] == 0
        assert run.config["data_seed"] == run.seed
    assert [r.config["method"]["projection_seed"] for r in expand(["seed=1,2", "method.projection_seed=${seed}"])] == [1, 2]


def test_every_file_of_conf_composes():
    for model in choices("model"):
        for method in choices("method"):
            extra = ["model.path=/x"] if model == "encoder" else []
            assert expand([f"model={model}", f"method={method}", *extra])
    for task in choices("task"):
        assert expand([f"task={task}"])[0].config["task"]["name"] == task
    for recipe in choices("recipe"):
        method, model = recipe.split("/")
        assert method in choices("method")
        assert model in choices("model")
        assert yaml.safe_load((CONF / "recipe" / f"{recipe}.yaml").read_text())["source"]


def test_a_repeated_call_answers_from_the_cache_and_a_changed_conf_does_not(tmp_path, monkeypatch):
    import runs.config as config

    words = ["seed=0,1", "task=rte"]
    first = expand(words)
    monkeypatch.setattr(config, "_expand", lambda _: pytest.fail("composed anew"))
    assert expand(words) == first
    copied = tmp_path / "conf"
    __import__("shutil").copytree(CONF, copied)
    (copied / "task" / "rte.yaml").open("a").write("\n# changed\n")
    monkeypatch.setattr(config, "CONF", copied)
    composed = []
    monkeypatch.setattr(config, "_expand", lambda _: composed.append(1) or first)
    expand(words)
    assert composed == [1]


def test_neither_configuration_nor_plan_nor_reading_imports_torch():
    import subprocess

    code = "import sys, runs.plan, runs.publish, analysis.tables; print('torch' in sys.modules, 'evaluate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]
