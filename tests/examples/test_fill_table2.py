"""The notebook that fills a table in several sessions, as a script, on a tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jupytext
import pytest
from running import ROOT, wait_for

pytestmark = pytest.mark.properties

SCRIPT = ROOT / "examples" / "fill_table2.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def test_the_notebook_is_the_script():
    """To write it: jupytext --to ipynb examples/fill_table2.py"""
    written, expected = jupytext.read(NOTEBOOK), jupytext.read(SCRIPT)
    assert [(cell.cell_type, cell.source) for cell in written.cells] == [
        (cell.cell_type, cell.source) for cell in expected.cells
    ]
    assert [cell.outputs for cell in written.cells if cell.cell_type == "code"] == [
        [] for cell in expected.cells if cell.cell_type == "code"
    ]


@pytest.fixture
def installed(tmp_path):
    """The packages as pip installs a wheel: there is no clone around them."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "records.jsonl")
    for room in ("vera", "tasks", "runs", "analysis"):
        shutil.copytree(ROOT / room, site / room, ignore=ignored)
    shutil.copytree(ROOT / "conf", site / "runs" / "conf")
    build = {"commit": "c" * 40, "dirty": False}
    (site / "runs" / "build.json").write_text(json.dumps(build))
    return site


@pytest.mark.usefixtures("process")
def test_a_session_that_is_cut_off_goes_on_and_ends_with_a_sound_study(
    words, installed, tmp_path
):
    drive = tmp_path / "drive"
    table = [word for word in words if not word.startswith("output=")]
    table += ["method=vera,lora", "seed=0,1"]
    parameters, *cells = [
        cell.source for cell in jupytext.read(SCRIPT).cells if cell.cell_type == "code"
    ]
    own = f"TABLE = {table!r}\nDRIVE = {str(drive)!r}\nNOTES = 'On a laptop.'\n"
    script = tmp_path / "session.py"
    script.write_text("\n\n".join([parameters, own, *cells]))

    def start():
        return subprocess.Popen(
            [sys.executable, script],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    first = start()
    wait_for(lambda: [*drive.glob("outputs/records/*.json")], first, seconds=300)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    finished = len([*drive.glob("outputs/records/*.json")])
    assert 1 <= finished < 4
    second = start()
    printed, _ = second.communicate(timeout=500)
    assert second.returncode == 0, printed
    assert f"4 records in {drive / 'my_table2'}" in printed
    assert printed.rstrip().endswith("my_table2: 4 records, 0 problems")
    # the cheapest first, and what is done is not listed
    listed = [line for line in printed.splitlines() if " FLOP  " in line]
    assert len(listed) == 2 - (finished >= 2)
    costs = [float(line.split()[0]) for line in listed]
    assert costs == sorted(costs)
    assert len([*drive.glob("outputs/records/*.json")]) == 4
