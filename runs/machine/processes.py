"""Other processes: the environment that they get from this one, and what they print."""

import os
import subprocess

from runs.record.ledger import ROOT

#: Seconds that a command such as squeue has to answer.
ANSWER_S = 60


def environment() -> dict[str, str]:
    """The environment variables of another process of this project, with the project on
    Python's path."""
    paths = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def output_of(*command: str) -> str:
    """What a command prints. Raises OSError where it is not there, and SubprocessError
    where it fails or does not answer."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=ANSWER_S
    )
    return result.stdout


def last_line(error: Exception | str) -> str:
    """The last line of an error's text, where programs say what was wrong."""
    text = str(error).strip() or repr(error)
    return text.splitlines()[-1]
