"""constraints.txt: the versions that CI ran.

`python .ci/versions.py` writes it from the environment that it runs in, which make
setup has made and CI has added Ray and lm-eval to (make constraints); with --check it
says where that environment differs, and changes nothing. With --pre it installs the
newest versions of PRE, those that are not released yet included."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FILE = Path(__file__).parents[1] / "constraints.txt"
PROJECT = "vera-bench"
#: Packages whose next version has broken this project, or whose previous one did.
PRE = ("hydra-core", "omegaconf", "transformers", "peft")
HEADER = """\
# The versions that CI ran (Python {python} on {platform}), without the part that names a build, such as +cpu.
# make setup takes them; pip install -c constraints.txt does so elsewhere. make constraints writes this file.
"""


def installed() -> dict[str, str]:
    """name -> version of every package here, but for pip and this project."""
    found = {
        canonicalize_name(of.name): Version(of.version).public
        for of in metadata.distributions()
    }
    return {name: found[name] for name in sorted({*found} - {"pip", PROJECT})}


def pinned() -> dict[str, str]:
    """name -> version, as the file has them."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return {
        name: version
        for name, equals, version in (line.partition("==") for line in lines)
        if equals
    }


def install_newest() -> int:
    """Installs the newest versions of PRE that pyproject.toml allows, and prints
    them."""
    project = tomllib.loads(FILE.with_name("pyproject.toml").read_text())["project"]
    needs = map(Requirement, project["optional-dependencies"]["bench"])
    allowed = {f"{need.name}{need.specifier}" for need in needs if need.name in PRE}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--pre"]
    ended = subprocess.run([*pip, *sorted(allowed)])
    print(*(f"{name}=={metadata.version(name)}" for name in PRE))
    return ended.returncode


def main(words: list[str]) -> int:
    if words == ["--pre"]:
        return install_newest()
    found = installed()
    if words == ["--check"]:
        wanted = pinned()
        differ = [
            name
            for name in sorted({*wanted, *found})
            if wanted.get(name) != found.get(name)
        ]
        for name in differ:
            here, there = found.get(name, "none"), wanted.get(name, "none")
            print(f"{name}: {here} is installed, {there} in constraints.txt")
        mend = ": make constraints writes what is installed" if differ else ""
        print(
            f"{len({*wanted} - {*differ})} of {len(wanted)} packages as in constraints.txt{mend}"
        )
        return 0
    needs = map(Requirement, metadata.requires(PROJECT) or ())
    if missing := [
        one.name
        for one in needs
        if canonicalize_name(one.name) not in {*found, PROJECT}
    ]:
        extras = "bench,dev,ray,lm-eval"
        print(
            f"error: {missing[0]} is not installed: .venv/bin/python -m pip install -e '.[{extras}]'"
        )
        return 2
    python = ".".join(map(str, sys.version_info[:2]))
    lines = [f"{name}=={version}\n" for name, version in found.items()]
    FILE.write_text(
        HEADER.format(python=python, platform=sys.platform) + "".join(lines),
        encoding="utf-8",
    )
    print(f"{FILE.name}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
