"""The commands of analysis as processes: options, unusable folders, a reader that stops reading."""

import subprocess
import sys

import pytest


def call(*words):
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["analysis.tables", "table1", "outptu=x"],
            "unrecognized arguments: outptu=x (python -m analysis.tables --help)",
        ),
        (["analysis.report", "output=FILE"], "FILE: File exists"),
        (["analysis.tables", "table1", "output=FILE", "--save"], "FILE/table1: Not a directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, tmp_path):
    path = tmp_path / "file"
    path.touch()
    done = call(*(word.replace("FILE", str(path)) for word in words))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {message.replace('FILE', str(path))}"
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("process")
def test_a_reader_that_has_seen_enough_hears_no_complaint():
    command = [
        sys.executable,
        "-c",
        "import sys\nfrom analysis.command import entry_point\nsys.argv = ['x']\n",
    ]
    command[-1] += "entry_point(lambda arguments: print('line\\n' * 100_000) or 0)"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
