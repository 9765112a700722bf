"""Executes the notebooks of this folder, percent scripts, on the records, and writes
OUTPUT/notebooks/NAME.ipynb and NAME.html.

vera-bench notebooks                 all of them
vera-bench notebooks median_tables   one
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runs.command.advice import require_known
from runs.command.errors import UserError
from runs.command.parser import RecordSettings, entry_point, read_command_line
from runs.record.files import write_atomically
from runs.record.ledger import ROOT

FOLDER = Path(__file__).parent
#: The names of the notebooks.
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")
)


def execute(notebook: Any, variables: dict[str, str]) -> None:
    """Runs a notebook's cells and stores their outputs in it. variables: of the
    environment, for the cells. Raises nbclient's CellExecutionError where a cell
    fails."""
    from nbclient import NotebookClient

    # a percent script does not name its kernel
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    # the kernel is another process, which has to find this project
    search_path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    defaults = {
        "PYTHONPATH": os.pathsep.join(search_path),
        "PYTHONWARNINGS": "ignore",
    }
    variables = defaults | variables
    NotebookClient(notebook, timeout=600).execute(env=os.environ | variables)


def build_notebook(name: str, output: Path) -> Path:
    """Runs one notebook on the records in `output`, and writes its .ipynb and .html.
    Returns the path of the .ipynb."""
    import jupytext
    from nbconvert import HTMLExporter

    notebook = jupytext.read(FOLDER / f"{name}.py")
    path = output / "notebooks" / f"{name}.ipynb"
    execute(notebook, {"VERA_OUTPUT": str(output.resolve())})
    write_atomically(path, jupytext.writes(notebook, fmt="ipynb") + "\n")
    # The page is to open without a network, so it has no addresses of these scripts.
    scripts = ("mathjax", "require_js", "jquery", "mermaid_js", "widget_renderer")
    exporter_class: Any = HTMLExporter  # it has no annotations
    exporter = exporter_class(**{f"{script}_url": "" for script in scripts})
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name}})
    write_atomically(path.with_suffix(".html"), text)
    return path


def main(arguments: list[str]) -> int:
    line = read_command_line(
        arguments, RecordSettings, positional="[NAME ...]", module=__name__
    )
    if not (find_spec("jupytext") and find_spec("nbconvert")):
        raise UserError(
            "notebooks are not installed: pip install 'vera-bench[notebooks]'"
        )
    chosen = [require_known("notebook", name, NAMES) for name in line.positional]
    for name in chosen or NAMES:
        path = build_notebook(name, Path(line.settings.output))
        print(f"Notebook: {path}, {path.with_suffix('.html').name}")
    return 0


if __name__ == "__main__":
    entry_point(main)
