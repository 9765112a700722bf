"""One run, many runs, and their records.

Importing this package imports no library. It checks that the libraries are installed,
and sets the environment variables that they read as they start. What the user has set
stays."""

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

#: The packages that runs, tasks and analysis import at the top of a module, by the
#: names that are imported.
IMPORTED_PACKAGES = (
    "accelerate",
    "annotated_types",
    "datasets",
    "evaluate",
    "hydra",
    "jinja2",
    "matplotlib",
    "numpy",
    "omegaconf",
    "orjson",
    "pandas",
    "PIL",
    "pydantic",
    "pydantic_core",
    "pynvml",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
    "tqdm",
    "transformers",
    "typing_extensions",
    "yaml",
)
INSTALL = "pip install 'vera-bench[bench]', or in a clone: . .venv/bin/activate"


def check_packages() -> None:
    """Checks that every package is there. If one is missing, a command of ours exits
    with one line, and any other program gets an ImportError."""
    missing = [name for name in IMPORTED_PACKAGES if find_spec(name) is None]
    if not missing:
        return
    text = f"not installed, and vera alone needs none of it: {', '.join(missing)}. {INSTALL}"
    # argv[0] is "-m" until Python has found the module of `python -m`
    if sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "vera-bench":
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(text)


check_packages()

#: The variables that switch off the progress bars of the hub, datasets and tqdm.
BAR_SWITCHES = (
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
    "TQDM_DISABLE",
)

#: Set by a command that does several runs, so that the fork server makes all their
#: imports (runs/machine/preload.py).
SEVERAL_RUNS = "VERA_BENCH_SEVERAL_RUNS"
#: Variables that torch, CUDA, wandb and tokenizers read once, as they start.
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS repeats itself to the bit
    # a GPU's number is the driver's, not its rank by speed
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # batches of hundreds of shapes fragment the memory
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # cuDNN takes some 50 ms to plan each new shape of a batch
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    # otherwise wandb reports its crashes to a server of its makers
    "WANDB_ERROR_REPORTING": "false",
    # otherwise tokenizers warn in every forked process
    "TOKENIZERS_PARALLELISM": "false",
}
#: An OpenMP thread without work spins for a while before it sleeps, and keeps a core
#: busy that another process may need. Next to two busy processes on 2 cores a run took
#: 3.7 times as long with the default number of turns, and 2.3 times with this one. On an
#: idle machine this costs 4% (make bench-contention, docs/bench).
SPINNING = {"GOMP_SPINCOUNT": "10000"}

if sys.stderr is None or not sys.stderr.isatty():  # a bar in a file or a pipe is noise
    for name in BAR_SWITCHES:
        os.environ.setdefault(name, "1")
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
# each of these says how long threads spin: what the user has set stays
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ.update(SPINNING)

# bitsandbytes warns as it is imported, also where nobody uses it
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
