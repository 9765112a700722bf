"""Every cell of every preset runs for two steps, on a tiny model of the preset's own architecture and rows of our own."""

import pytest

from runs.config import expand, with_starts
from runs.identity import run_id
from runs.train import train

#: How many cells each has.
PRESETS = {"table2_base": 36, "table2_large": 36, "table2_base_mnli": 4}


@pytest.mark.parametrize("paper", PRESETS)
def test_every_cell_runs_for_two_steps(paper, tiny_roberta, glue, tmp_path):
    words = [f"paper={paper}", "seed=0", f"model.path={tiny_roberta}", "model.architecture=null", f"task.data_dir={glue}"]
    runs = with_starts(expand([*words, "train.max_steps=2", "device=cpu", f"output={tmp_path}"]))
    assert len(runs) == PRESETS[paper]
    for run in runs:
        record = train(run, run_id(run), lambda event: None)
        assert record["status"] == "done", run.label
        assert record["steps"] == 2
        assert record["parameters"]["adapter"] == record["parameters"]["formula"]
        assert record["recipe"]["name"] == f"{run.config['method'].get('recipe', run.row)}/{run.model}"
        assert record["effective_batch"] == run.config["train"]["effective_batch"]
