# %% [markdown]
# # Fill a table on a free GPU
# This notebook trains the cells of a table that nobody has trained yet. It begins with the cheapest
# ones and stops after the hours that you choose. Everything is saved on your drive. If your session
# is cut off, open the notebook again, and it continues. At the end you get a folder that you can
# send to the project as a pull request (docs/publishing.md).
#
# On Colab, choose File, Open notebook, GitHub. Then choose a GPU under Runtime, Change runtime
# type. CI runs this notebook on a CPU with a tiny model, and kills it once in the middle. It has
# not run on Colab yet.
# %% tags=["parameters"]
URL = "URL"  # of this repository, for pip install
TABLE = [
    "experiment=table2_base"
]  # for a part of it, add "method=vera" or "task=rte,mrpc"
HOURS = 3.0  # of this session; then the current run is saved and stops
STUDY = "my_table2"  # the name of the folder that you send
NOTES = ""  # your machine, and what a reader must know; the last cell needs it
DRIVE = "/content/drive/MyDrive/vera-bench"  # where everything is kept
# %%
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

DEADLINE = time.monotonic() + HOURS * 3600


def command(*words):
    """Runs a Python module as a terminal would, and returns its exit code. At the
    deadline the module is asked to stop, and saves its state."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timer = threading.Timer(max(DEADLINE - time.monotonic(), 0), process.terminate)
    timer.start()
    for line in process.stdout:
        print(line, end="", flush=True)
    timer.cancel()
    return process.wait()


if "google.colab" in sys.modules:
    from google.colab import drive

    if URL == "URL":
        raise ValueError("URL, in the cell above, is the address of the repository")
    drive.mount("/content/drive")
    command("pip", "install", "--quiet", f"vera-bench[bench] @ git+{URL}")
OUTPUT = str(Path(DRIVE, "outputs"))
WORDS = [*TABLE, f"output={OUTPUT}"]
# %% [markdown]
# ## See what is missing
# A cell is a method on a task, with all of its seeds. Runs count as done if they are on your drive
# or if the project has published them. The cost of a cell is what its remaining runs need, in
# floating-point operations (FLOP).
# %%
from runs.config import read_command
from runs.forecast.work import outline
from runs.plan import plan, runs_to_do
from runs.record.folder import RecordFolder
from runs.run.definition import with_starts


def missing_cells():
    """The cells with runs that are left, the cheapest first: their cost and their
    runs."""
    runs_by_cell = defaultdict(list)
    planned = plan(with_starts(read_command(WORDS).runs), RecordFolder(OUTPUT))
    for entry in runs_to_do(planned):
        run = entry.run
        runs_by_cell[run.model, run.row, run.task].append(run)
    cells = []
    for runs in runs_by_cell.values():
        cells.append((outline(runs[0]).flops * len(runs), runs))
    return sorted(cells, key=lambda cell: cell[0])


for cost, runs in missing_cells():
    seeds = ", ".join(str(run.seed) for run in runs)
    print(f"{cost:8.1e} FLOP  {runs[0].row} on {runs[0].task}, seeds {seeds}")
# %% [markdown]
# ## Train the missing runs
# If a run fails, the others still run, and the next attempt repeats it. Run this cell again, in
# this session or a later one, until nothing is missing.
# %%
for _, runs in missing_cells():
    if time.monotonic() >= DEADLINE:
        print("The hours are over. Open the notebook again to continue.")
        break
    first = runs[0]
    cell = [f"method={first.row}", f"task={first.task}"]
    seeds = "seed=" + ",".join(str(run.seed) for run in runs)
    # Without the choices that `cell` and `seeds` narrow down
    other_words = [
        word for word in WORDS if not word.startswith(("method=", "task=", "seed="))
    ]
    command("runs", *other_words, *cell, seeds, "table=false", "tracking=off")
command("analysis.tables", "table2", f"output={OUTPUT}")
# %% [markdown]
# ## Send your runs
# This cell writes the finished runs of the table into a folder on your drive, and checks it. Copy
# the folder to `runs/records` in a clone of the project, and open a pull request.
# %%
# The hours may be over: these commands get ten minutes
DEADLINE = time.monotonic() + 600
folder = Path(DRIVE, STUDY)
if NOTES:
    command("runs.publish", STUDY, *WORDS, f"into={DRIVE}")
    (folder / "NOTES.md").write_text(f"{NOTES}\n")
    command("runs.publish", f"check={folder}")
else:
    print("Fill in NOTES in the first cell. Then run that cell and this one.")
