"""Every cell of every preset composes; every row and every task of it runs for two steps, on a tiny model of
the preset's own architecture and rows of our own. And methods that are no file of the clone."""

import sys

import pytest
from running import call_here, do, output_of, refused
from tiers import sample

import vera
from runs import evaluate
from runs.config import CONF, expand
from runs.identity import run_id
from runs.methods import make_method, source_file
from runs.provenance import changed
from runs.record import read_record, read_sweep, record_path, sweep_names
from runs.run import with_starts
from runs.training.loop import Training
from runs.training.train import train

pytestmark = pytest.mark.contract

#: test_recipes.py has those of peers; the others that are left out have cells like these.
ELSEWHERE = ("demo", "peers", "randomness", "rank_scaling_sst2", "vera_all")
PRESETS = sorted(path.stem for path in CONF.glob("experiment/*.yaml") if not path.stem.startswith(ELSEWHERE))
#: One of each family of text is fast; so is a run on images, in tests/nets.
FAST = {"figure3", "e2e_smollm2", "table4_llama_7b"}


@pytest.mark.parametrize("paper", sample(PRESETS, *FAST))
def test_every_row_and_task_runs_for_two_steps(paper, request, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)  # Java takes seconds a run
    monkeypatch.setattr("tasks.images.ImageTask.illustrate", lambda *_: None)  # and drawing two
    kinds = dict.fromkeys(("table2", "table6", "table7"), ("tiny_roberta", "glue"))
    kinds |= {f"figure{number}": ("tiny_roberta", "glue") for number in (2, 3, 4, 5)}
    kinds |= dict.fromkeys(("glue", "rank", "ablations"), ("tiny_bert", "glue"))
    kinds |= {"table5": ("tiny_vit", "images"), "images": ("tiny_vit", "images")}
    kinds |= {"table3": ("tiny_gpt2", "e2e"), "e2e": ("tiny_llama", "e2e")}
    names = kinds.get(paper.partition("_")[0], ("tiny_llama", "alpaca"))
    model, data = map(request.getfixturevalue, names)
    words = [f"experiment={paper}", "seed=0", f"model.path={model}", "model.architecture=null"]
    words += [f"task.data_dir={data}"]
    decodes = paper.startswith(("table3", "e2e"))
    few = ["task.items=1", "task.max_new_tokens=4", "task.train_rows=null", "task.dev_rows=null"]
    words += few if decodes else []
    words += ["task.shots=4"] if paper.startswith(("table5", "images")) else []
    own = ("minilm", "mpnet", "dinov2", "smollm2")
    words += ["model.sha256=null"] if any(name in paper for name in own) else []
    # In 4 bit, as the preset says; bf16 and checkpointing as the recipe does.
    chats = paper.startswith(("table4", "table1", "alpaca"))
    words += ["task.train_rows=null", "task.dev_rows=2"] if chats else []
    runs = with_starts(expand([*words, "train.max_steps=2", "device=cpu", f"output={tmp_path}"]))
    seen: set[str] = set()
    for run in runs:
        words = {key: value for key, value in run.method.items() if type(value) not in (int, float)}
        if {str(words), run.task} <= seen:  # this cell differs from those before in numbers alone
            continue
        seen |= {str(words), run.task}
        record = train(Training(run, run_id(run), lambda event: None))
        assert record["status"] == "done", run.label
        # Where there is one epoch, its eight rows are one effective batch.
        assert record["steps"] == {"none": 0}.get(run.row, 1 if run.config["train"]["epochs"] == 1 else 2)
        assert record["parameters"]["adapter"] == record["parameters"]["formula"]
        assert record["recipe"]["name"] in {
            f"{row}/{'roberta_base' if paper == 'table2_mpnet' else run.model}"
            for row in (run.row, run.config["method"].get("recipe"))
        }
        assert record["effective_batch"] == run.config["train"]["effective_batch"]
        assert bool(record["texts"]) == decodes


# --- methods that are no file of the clone

OWN = '''
from dataclasses import dataclass

from vera import BitFit


@dataclass(frozen=True)
class Biases(BitFit, kind="own_biases"):
    """BitFit under another name."""


class NoMethod:
    pass
'''


TAKEN = "import vera\nclass Mine(vera.Method, kind='lora'): pass\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of configuration whose method is a class of a module elsewhere."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_method_of_a_test.py").write_text(OWN)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    file = tmp_path / "conf" / "method" / "biases.yaml"
    file.write_text("kind: own_method_of_a_test.Biases\nlabel: own biases\nkeep: best\nrecipe: bitfit\n")
    monkeypatch.delitem(sys.modules, "own_method_of_a_test", raising=False)  # another test's file
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"), prepend=":")
    return tmp_path


def of_method(words, *method):
    return [word for word in words if not word.startswith("method")] + list(method)


def test_a_method_outside_of_the_clone_trains_and_its_record_names_its_source(own, words):
    mine = [*of_method(words, "method=biases"), "--config-dir", str(own / "conf")]
    record = do(mine)
    assert record["cell"]["row"] == "biases"
    assert record["config"]["method"]["kind"] == "own_method_of_a_test.Biases"
    source = record["code"]["sources"]["method"]
    assert (source["file"], source["uncommitted"]) == ("own_method_of_a_test.py", None)
    assert changed(record) == []
    (own / "code" / "own_method_of_a_test.py").write_text(OWN + "# another version\n")
    assert changed(record) == ["own_method_of_a_test.py"]
    (run,) = expand(mine)
    assert isinstance(make_method(run.method), vera.METHODS["own_biases"])


@pytest.mark.usefixtures("process")
def test_processes_of_a_sweep_find_it_by_the_path(own, words):
    mine = [*of_method(words, "method=biases", "seed=0,1"), "--config-dir", str(own / "conf"), "tracking=off"]
    printed = call_here("runs", *mine, check=0).stdout
    assert "2 done" in printed
    assert "| own biases | " in printed
    assert "This table: python -m analysis.tables sweep=runs-" in printed
    (name,) = sweep_names(output_of(words))
    ids = read_sweep(output_of(words), name)
    assert [read_record(record_path(output_of(words), i))["cell"]["seed"] for i in ids] == [0, 1]
    asked = [f"sweep={name}", f"output={output_of(words)}"]
    again = call_here("analysis.tables.__main__", *asked, check=0).stdout
    assert again.strip() in printed
    quiet = call_here("runs", *mine, "table=false", check=0).stdout
    assert "| own biases | " not in quiet
    assert f"Its table: python -m analysis.tables sweep={name}" in quiet


KEYS = "task.modality task.family task.label model.label model.modality method.kind method.label method.keep"


@pytest.mark.parametrize("key", KEYS.split())
def test_a_file_without_a_key_that_each_has_is_one_line(key, tmp_path):
    task = "name: mine\nlabel: mine\nfamily: text\nmodality: text\ntrain_file: a.csv\n"
    model = "name: mine\nlabel: mine\nmodality: text\npath: /x\n"
    files = {"task": task, "model": model, "method": "kind: bitfit\nlabel: mine\nkeep: best\n"}
    for group, text in files.items():
        lines = [line for line in text.splitlines() if not f"{group}.{line}".startswith(f"{key}:")]
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text("\n".join(lines))
    with refused(f"{key} is missing"):
        expand(["task=mine", "model=mine", "method=mine", "--config-dir", str(tmp_path)])


def test_a_package_that_does_not_compile_ends_no_line_on_a_finished_run(tmp_path, monkeypatch):
    (tmp_path / "broken_package_of_a_test").mkdir()
    (tmp_path / "broken_package_of_a_test" / "__init__.py").write_text("def x(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert source_file("broken_package_of_a_test.svft.SVFT") is None


def test_a_file_that_names_recipes_nobody_wrote_is_refused(own, words):
    file = own / "conf" / "method" / "biases.yaml"
    file.write_text(file.read_text().replace("recipe: bitfit", "recipe: bitfitt"))
    with refused(f"no row with recipes, as {file} names it: 'bitfitt'. Did you mean bitfit?"):
        expand([*of_method(words, "method=biases"), "--config-dir", str(own / "conf")])


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (OWN, "own.Nothing", "Nothing: cannot be imported"),
        (OWN, "own.NoMethod", "should be a method such as class NoMethod"),
        (OWN, "no_such_module_anywhere.Mine", "PYTHONPATH"),
        ("def x(:\n", "broken.Mine", "SyntaxError: invalid syntax"),
        ("import no_such\n", "broken.Mine", "ModuleNotFoundError: No module named 'no_such'"),
        (TAKEN, "broken.Mine", "AdapterError: kind 'lora' is taken by vera.methods.lora.LoRA"),
    ],
)
def test_what_is_no_method_or_fails_to_import_is_one_line_with_its_error(code, kind, message, own):
    (own / "code" / "broken_method_of_a_test.py").write_text(code)
    kind = kind.replace("own.", "own_method_of_a_test.").replace("broken.", "broken_method_of_a_test.")
    with refused(kind, message):
        make_method({"kind": kind})
    with pytest.raises(vera.AdapterError, match="no method of kind"):  # as an adapter file names it
        vera.make_method(kind)


CARELESS = '''
from dataclasses import dataclass

import torch
from torch import nn

import vera
from vera.methods.layers import Change, changes, wrap
from vera.sites import find_sites


class Careless(Change):
    """B (A x) with a random A that no file holds, or of which nothing trains."""

    def __init__(self, how, inputs, outputs):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        a = torch.zeros(4, inputs) if how == "zero" else torch.randn(4, inputs)
        if how == "zero":
            self.a = nn.Parameter(a)
        else:
            self.register_buffer("a", a, persistent=False)
        self.b = nn.Parameter(torch.zeros(outputs, 4))

    def forward(self, x):
        return x @ self.a.T @ self.b.T

    def weight(self):
        return self.b @ self.a


@dataclass(frozen=True)
class Forgets(vera.Method, kind="careless"):
    how: str = "forgets"

    def install(self, model):
        wrap(model, find_sites(model, ("query", "value")), lambda p, b, base, n, m: Careless(self.how, n, m))

    def count(self, model):
        return sum(4 * change.outputs for change in changes(model)) - 1
'''


@pytest.fixture
def careless(tmp_path, monkeypatch, words):
    (tmp_path / "careless_of_a_test.py").write_text(CARELESS)
    (tmp_path / "own" / "method").mkdir(parents=True)
    file = tmp_path / "own" / "method" / "careless.yaml"
    file.write_text("kind: careless_of_a_test.Forgets\nlabel: careless\nkeep: best\nhow: forgets\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield [*of_method(words, "method=careless"), "--config-dir", str(tmp_path / "own"), "train.lr=1.0"]
    vera.METHODS.pop("careless", None)
    sys.modules.pop("careless_of_a_test", None)


def test_what_the_files_of_a_run_lack_does_not_come_back_with_its_seed(careless, capsys):
    """As in a program that loads the file: there the random A is another one."""
    record = do([*careless, "train.epochs=3"])
    assert evaluate.main([record["id"], f"output={output_of(careless)}"]) == 1
    assert "NOT the same" in capsys.readouterr().out
    formula, trained = (record["parameters"][key] for key in ("formula", "adapter"))
    assert f"the method's count() says {formula:,} of {trained:,} parameters" in record["deviations"]


def test_a_method_that_no_gradient_reaches_is_refused(careless):
    with pytest.raises(vera.AdapterError, match="no gradient has reached what Forgets trains"):
        do([*careless, "method.how=zero"])
