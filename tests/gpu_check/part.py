"""One part, in its own process: python -m gpu_check.part PART DEVICE FOLDER. Started by __main__.py."""

import importlib
import os
import sys
import tempfile
import time
from pathlib import Path


def main(part: str, device: str, folder: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as home:
        # Nothing of the user's is read or written.
        os.environ |= {"XDG_CACHE_HOME": f"{home}/cache", "GPU_CHECK_HOME": home}
        import torch
        from transformers.utils import logging

        from gpu_check.report import Report
        from runs.training.provenance import code_state, machine, versions

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        header = {"date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device(device))}
        header |= {"threads": torch.get_num_threads(), "versions": versions(), "code": code_state()}
        report = Report(part, device, Path(folder), header)
        with report.guarded(f"{part} goes on to its end"):
            importlib.import_module(f"gpu_check.{part}").run(report, Path(home))
        report.write(ended=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
