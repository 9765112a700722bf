# %% [markdown]
# # Fill a table on a free GPU
# Runs the cells of a table that nobody has run yet, the cheapest first, for as many hours as you
# give it. All of it is saved on your drive, so you can open this notebook again after a session
# was cut off: it goes on where it stopped. At the end it writes a folder that you can send to the
# project as a pull request (docs/publishing.md).
#
# On Colab: File, Open notebook, GitHub; then Runtime, Change runtime type, and choose a GPU. CI
# runs this notebook on a tiny model, on a CPU, with a kill in the middle. It has not run on Colab
# yet.
# %% tags=["parameters"]
URL = "URL"  # of this repository, for pip install
TABLE = [
    "experiment=table2_base"
]  # or a part of it: add "method=vera" or "task=rte,mrpc"
HOURS = 3.0  # of this session, after which what is running is saved
STUDY = "my_table2"  # the name of the folder that you send
NOTES = ""  # on which machine you ran, and what a reader must know; needed for the last cell
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
    """A command of Python's modules, as in a terminal. At the deadline it is asked to
    stop, and saves. Returns its exit code."""
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
# ## What is missing
# A cell is a method on a task, with all of its seeds. Runs that are on your drive, or that the
# project has published, are done. The cost is that of the runs which are left, in floating-point
# operations.
# %%
from runs.config import read_command
from runs.forecast.work import outline
from runs.plan import left, plan
from runs.record.folder import RecordFolder
from runs.run.definition import with_starts


def missing_cells():
    """The cells with runs that are left, the cheapest first: their cost and their
    runs."""
    runs_by_cell = defaultdict(list)
    planned = plan(with_starts(read_command(WORDS).runs), RecordFolder(OUTPUT))
    for entry in left(planned):
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
# ## Run them
# A run that fails does not stop the others, and is tried again the next time. Run this cell
# again, in this session or a later one, until nothing is missing.
# %%
for _, runs in missing_cells():
    if time.monotonic() >= DEADLINE:
        print("The hours are over: open the notebook again to go on.")
        break
    first = runs[0]
    cell = [f"method={first.row}", f"task={first.task}"]
    seeds = "seed=" + ",".join(str(run.seed) for run in runs)
    kept = [
        word for word in WORDS if not word.startswith(("method=", "task=", "seed="))
    ]
    command("runs", *kept, *cell, seeds, "table=false", "tracking=off")
command("analysis.tables", "table2", f"output={OUTPUT}")
# %% [markdown]
# ## A folder to send
# Writes the finished runs of the table into a folder on your drive, and checks it. Copy it to
# runs/records in a clone, and open a pull request.
# %%
DEADLINE = time.monotonic() + 600
folder = Path(DRIVE, STUDY)
if NOTES:
    command("runs.publish", STUDY, *WORDS, f"into={DRIVE}")
    (folder / "NOTES.md").write_text(f"{NOTES}\n")
    command("runs.publish", f"check={folder}")
else:
    print("Write NOTES, in the first cell, and run that cell and this one.")
