"""Every preset's runs: their configurations, rows and ids. The contents of models and data, which need files,
are stubs."""

import json
from pathlib import Path

import pytest
from tiers import sample

from nets.golden import same_text
from runs import config, identity

PRESETS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml"))
#: Of each kind of task and model a preset or two of few cells: a cell takes a quarter of a second to compose.
FAST = [
    "figure3",
    "figure5",
    "table12",
    "table3_large",
    "table4_llama_13b",
    "e2e_smollm2",
    "alpaca_smollm2",
    "images_dinov2",
]

#: Of a preset of a thousand runs a part.
PARTS = {"peers_base": ["task=mrpc,rte", "seed=0"]}


def flat(name, value):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(f"{name}.{key}" if name else key, inner)
    else:
        yield name, json.dumps(value)


@pytest.mark.parametrize("preset", sample(PRESETS, *FAST))
def test_a_presets_configurations_and_ids(preset, monkeypatch):
    """The first run in full, of the others what differs from it; 8 stays 8, and is not 8.0: ids are made of
    this."""
    monkeypatch.setattr(identity, "model_content", lambda model: f"content of {model['name']}")
    monkeypatch.setattr(identity, "data_content", lambda task: f"content of {task['name']}")
    monkeypatch.chdir("/")  # paths that are relative stay so
    lines, before = [], {}
    for run in config.expand([f"experiment={preset}", *PARTS.get(preset, [])]):
        now = dict(flat("", run.config))
        lines.append(
            f"{identity.run_id(run)} {run.row} {run.model} {run.config['task']['name']} seed {run.seed}:"
            f" {run.recipe}"
        )
        if run.start:
            lines.append(f"  starts from {identity.run_id(run.start)}")
        before = before or lines.extend(f"  {key} = {value}" for key, value in now.items()) or now
        lines += [f"  {key} = {now.get(key)}" for key in {**before, **now} if before.get(key) != now.get(key)]
    same_text(f"presets/{preset}.txt", "\n".join(lines) + "\n")
