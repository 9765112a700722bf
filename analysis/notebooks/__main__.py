"""Executes the notebooks of this folder, percent scripts, on the records: OUTPUT/notebooks/NAME.ipynb and
NAME.html.

    python -m analysis.notebooks                    all of them       (make notebooks)
    python -m analysis.notebooks median_tables      one

jupytext opens the scripts as notebooks; only the scripts are committed.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from runs.command import OfRecords, entry_point, one_of, read
from runs.record import write_atomically

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def build(name: str, output: Path) -> Path:
    """Runs one notebook on the records in `output`; its .ipynb. Raises nbclient's CellExecutionError where a
    cell fails."""
    import jupytext
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    root = str(FOLDER.parents[1])
    more = {"VERA_OUTPUT": str(output.resolve())}
    more["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    more["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as folder:
        # To the kernel by files of this user: no port is opened. Their folder is named, or it would be the
        # working directory of either
        kernel = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        files, resources = Config({"KernelManager": kernel}), {"metadata": {"path": folder}}
        NotebookClient(notebook, config=files, timeout=600, resources=resources).execute(
            env=os.environ | more
        )
    path = output / "notebooks" / f"{name}.ipynb"
    write_atomically(path, jupytext.writes(notebook, fmt="ipynb") + "\n")
    # Without the addresses of MathJax, RequireJS, Mermaid: the page opens without a network.
    exporter: Any = HTMLExporter  # without annotations of its own
    pages = exporter(
        mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="", widget_renderer_url=""
    )
    text, _ = pages.from_notebook_node(notebook, {"metadata": {"name": name}})
    write_atomically(path.with_suffix(".html"), text)
    return path


class Settings(OfRecords):
    """None of its own."""


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="[NAME ...]")
    names = [one_of("notebook", name, NAMES) for name in line.names]
    for name in names or NAMES:
        path = build(name, Path(line.settings.output))
        print(f"Notebook: {path}, {path.with_suffix('.html').name}")
    return 0


if __name__ == "__main__":
    entry_point(main)
