"""Other processes: the environment that they get from this one, what they print, and
what killed ones leave."""

import os
import socket
import subprocess
from pathlib import Path

from runs.record.ledger import ROOT

#: Seconds that a command such as squeue has to answer.
ANSWER_S = 60


def process_environment() -> dict[str, str]:
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


def is_dead(name: str) -> bool:
    """Whether HOST.PID.TOKEN names a process of this machine that has ended."""
    host, _, number = name.rpartition(".")[0].rpartition(".")
    try:
        if host == socket.gethostname() and number.isdecimal() and len(number) < 10:
            os.kill(int(number), 0)
    except OSError as error:  # or it is another user's, whom /proc may hide
        return isinstance(error, ProcessLookupError)
    return False


def sweep_up_dead(folder: Path) -> None:
    """Removes the temporary files in a folder that killed processes of this machine
    left. Always safe."""
    for partial in folder.glob(".*.*.*.*.*"):
        if is_dead(partial.name.split(".", 3)[3]):  # .NAME.json.HOST.PID.TOKEN
            partial.unlink(missing_ok=True)
