"""Each notebook runs, on an empty ledger and on a small one, and writes what CI and `make notebooks`
write."""

import json
import re
import runpy

import jupytext
import pytest
from ledgers import seeds

from analysis.notebooks import __main__ as build
from runs.errors import UserError
from runs.record import write_record


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    for r in [*seeds(), *seeds("lora"), *seeds("vera", "reviews", (0.8, 0.81, 0.82), model="minilm")]:
        write_record(folder, r)
    return folder


WORDS = {
    "ablations": "note: the ledger holds no variant of VeRA beside VeRA",
    "adaptation_magnitude": "the length of the change of d",
    "cost": "Cost of each cell",
    "median_tables": "P(better)",
    "rank_scaling": "MiniLM on reviews: median of 3 seeds",
}


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("name", build.NAMES)
def test_a_notebook_runs_on_a_small_ledger(name, output):
    path = build.build(name, output)
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["execution_count"] for cell in code)
    assert any(cell["outputs"] for cell in code)
    page = path.with_suffix(".html").read_text()
    assert WORDS[name] in page
    assert 'src="http' not in page


@pytest.mark.parametrize("name", build.NAMES)
def test_a_notebook_is_a_script_and_says_what_is_missing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VERA_OUTPUT", str(tmp_path))
    runpy.run_path(str(build.FOLDER / f"{name}.py"))
    assert "note: no records yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", build.NAMES)
def test_a_notebook_opens_with_its_title_and_a_text(name):
    """A comment that is wrapped anew would make one line of both."""
    first, *others = jupytext.read(build.FOLDER / f"{name}.py").cells
    title, *text = first.source.splitlines()
    assert first.cell_type == "markdown"
    assert re.fullmatch(r"# [\w ]{1,40}", title)
    assert text
    assert not any("[markdown]" in cell.source for cell in others)


def test_the_five_notebooks_and_no_other():
    assert sorted(WORDS) == build.NAMES
    with pytest.raises(UserError, match=r"no notebook 'none'\. Known: ablations"):
        build.main(["none"])
