"""Each notebook runs, without records and on a few, and writes what CI and `make
notebooks` write."""

import json
import re
import runpy

import jupytext
import pytest
from ledgers import seed_records
from tiers import slow_except

from analysis.notebooks import __main__ as build
from runs.command.errors import UserError
from runs.record.ledger import write_record

pytestmark = pytest.mark.properties

WORDS = {"ablations": "VeRA r=1024", "adaptation_magnitude": "change of d by layer"}
WORDS |= {"cost": "peak_memory_bytes", "median_tables": "p (Holm)"}
# Its weights are not those of the published runs on MiniLM.
WORDS["rank_scaling"] = "MiniLM hash on reviews: accuracy against parameters"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    for r in [
        *seed_records(),
        *seed_records("lora"),
        *seed_records("vera", "reviews", (0.8, 0.81, 0.82), model="minilm"),
    ]:
        r["label"]["model"] = {"minilm": "MiniLM"}.get(
            r["cell"]["model"], "RoBERTa-base"
        )
        write_record(folder, r)
    return folder


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("name", build.NAMES)
def test_a_notebook_runs_on_a_small_ledger(name, output):
    path = build.build_notebook(name, output)
    code = [
        cell
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    assert all(cell["execution_count"] for cell in code)
    page = path.with_suffix(".html").read_text()
    assert WORDS[name] in page
    assert 'src="http' not in page


@pytest.mark.parametrize("name", slow_except(build.NAMES, "cost"))
def test_a_notebook_is_a_script_that_begins_with_the_frames(
    name, tmp_path, monkeypatch, capsys
):
    """And with a title and a text, which a comment that is wrapped anew would make
    one."""
    monkeypatch.setenv("VERA_OUTPUT", str(tmp_path))
    runpy.run_path(str(build.FOLDER / f"{name}.py"))
    assert capsys.readouterr().out
    first, second, *_ = jupytext.read(build.FOLDER / f"{name}.py").cells
    assert re.match(r"# [\w ]{1,40}\n.", first.source)
    assert re.match(r"from analysis import .*\bruns\b", second.source)


def test_another_name_and_missing_packages_are_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"no notebook 'none'\. Known: ablations"):
        build.main(["none"])
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vera-bench\[notebooks\]'"):
        build.main([])
