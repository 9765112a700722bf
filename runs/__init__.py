import logging
import os
import sys

#: Libraries read these as they are imported: no progress bars.
NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")

if sys.stderr is None or not sys.stderr.isatty():  # a bar in a file or a pipe is noise
    for name in NO_BARS:
        os.environ.setdefault(name, "1")

# Which warns as it is imported, whether anyone uses it or not
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
