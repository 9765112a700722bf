"""One run, many runs, and their records. Before any library is imported: whether they
are installed, and what they read from the environment, where what the user has set
stays."""

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

#: What runs, tasks and analysis import at the top of a module, by the names that are
#: imported.
IMPORTED = (
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
    """Ends a command, in one line, where a package is missing; raises ImportError in
    another program."""
    missing = [name for name in IMPORTED if find_spec(name) is None]
    if not missing:
        return
    text = f"not installed, and vera alone needs none of it: {', '.join(missing)}. {INSTALL}"
    # -m: Python has yet to find the module
    if sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "vera-bench":
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(text)


check_packages()

#: No progress bars.
NO_BARS = (
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
    "TQDM_DISABLE",
)

#: The environment variable by which a command that does several runs has all imports
#: made for them at once.
SEVERAL = "VERA_BENCH_SEVERAL_RUNS"
#: Read once, as torch or CUDA starts.
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS repeats itself to the bit
    # a GPU's number is the driver's, not its rank by speed
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # batches of hundreds of shapes fragment the memory
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # cuDNN plans each shape of a batch anew, some 50 ms
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    # or wandb reports its crashes to a server of its makers
    "WANDB_ERROR_REPORTING": "false",
    "TOKENIZERS_PARALLELISM": "false",  # or tokenizers warn in every forked process
}
#: A thread without work waits in a loop, by default for long, on a core that another
#: process may need. Beside two busy processes on 2 cores a run took 3.7 times as long
#: by default, and 2.3 times with so few turns, which cost 4% on an idle machine (make
#: bench-contention, docs/bench).
SPINNING = {"GOMP_SPINCOUNT": "10000"}

if sys.stderr is None or not sys.stderr.isatty():  # a bar in a file or a pipe is noise
    for name in NO_BARS:
        os.environ.setdefault(name, "1")
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ.update(SPINNING)

# Which warns as it is imported, whether anyone uses it or not
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
