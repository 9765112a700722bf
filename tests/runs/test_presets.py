"""Every cell of every preset composes; every row and every task of it runs for two steps, on a tiny model of
the preset's own architecture and rows of our own."""

import pytest
from tiers import sample

from runs.config import CONF, expand
from runs.identity import run_id
from runs.run import with_starts
from runs.training.loop import Training
from runs.training.train import train

pytestmark = pytest.mark.contract

#: test_peer_rows.py has those of peers; the others that are left out have cells like these.
ELSEWHERE = ("demo", "peers", "randomness", "rank_scaling_sst2", "vera_all")
PRESETS = sorted(path.stem for path in CONF.glob("experiment/*.yaml") if not path.stem.startswith(ELSEWHERE))
#: One of each family of text is fast; so is a run on images, in tests/nets.
FAST = {"figure3", "e2e_smollm2", "table4_llama_7b"}


@pytest.mark.parametrize("paper", sample(PRESETS, *FAST))
def test_every_row_and_task_runs_for_two_steps(paper, request, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)  # Java takes seconds a run
    monkeypatch.setattr("tasks.images.ImageTask.illustrate", lambda *_: None)  # and drawing two
    kinds = dict.fromkeys(
        ("table2", "table6", "table7", "figure2", "figure3", "figure4", "figure5"), ("tiny_roberta", "glue")
    )
    kinds |= dict.fromkeys(("glue", "rank", "ablations"), ("tiny_bert", "glue"))
    kinds |= dict.fromkeys(("table5", "images"), ("tiny_vit", "images"))
    kinds |= {"table3": ("tiny_gpt2", "e2e"), "e2e": ("tiny_llama", "e2e")}
    model, data = (
        request.getfixturevalue(n) for n in kinds.get(paper.partition("_")[0], ("tiny_llama", "alpaca"))
    )
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
