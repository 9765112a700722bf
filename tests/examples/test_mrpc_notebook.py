"""The notebook for Colab, executed on a tiny model and a few rows of MRPC."""

import ast
import json

import nbformat
import pytest
from running import ROOT

from analysis.notebooks.__main__ import execute

pytestmark = pytest.mark.properties

FILE = ROOT / "examples" / "mrpc.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def parameters(source: str) -> set[str]:
    return {node.targets[0].id for node in ast.parse(source).body}


def test_it_is_whole_without_outputs_and_begins_with_its_parameters(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []
    assert [
        cell for cell in code if cell.metadata.get("tags") == ["parameters"]
    ] == code[:1]
    assert parameters(code[0].source) == {
        "URL",
        "MODEL",
        "DATA",
        "SETTINGS",
        "SEEDS",
        "OUTPUT",
    }
    # as Jupyter writes it
    assert FILE.read_text() == nbformat.writes(notebook, indent=1) + "\n"


@pytest.mark.usefixtures("process")
def test_it_trains_looks_exports_and_serves(notebook, tiny_roberta, glue, tmp_path):
    train = {"epochs": 2, "max_length": 32, "effective_batch": 8}
    words = [
        "method.rank=8",
        "device=cpu",
        *(f"train.{key}={value}" for key, value in train.items()),
    ]
    own = f"MODEL = {['model=encoder', f'model.path={tiny_roberta}']}\n"
    own += f"DATA = {[f'task.data_dir={glue}']}\nSETTINGS = {words}\nOUTPUT = {str(tmp_path / 'outputs')!r}"
    assert parameters(own) < parameters(notebook.cells[1].source)
    notebook.cells.insert(2, nbformat.v4.new_code_cell(own))
    execute(notebook, {})
    printed = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert len(list((tmp_path / "outputs" / "records").glob("*.json"))) == 2
    assert "2 of 2 runs done in " in printed
    assert "| VeRA r=8 " in printed
    assert "image/png" in printed
    assert "seed 1, chance that a pair says the same: " in printed
    difference = float(
        printed.partition("peft and the server differ by ")[2].partition(" ")[0]
    )
    assert difference < 1e-4
