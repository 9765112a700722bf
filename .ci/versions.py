"""constraints.txt: the versions that CI ran, of what pyproject.toml names and of all that this needs in turn.

`python .ci/versions.py` writes it from the environment that it runs in (make constraints); with --check it
says where that environment differs, and changes nothing.
"""

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints.txt"
HEADER = """\
# The versions that CI ran (Python {python} on {platform}), without the part that names a build, such as +cpu.
# make setup takes them; pip install -c constraints.txt does so elsewhere. make constraints writes this file.
"""


def installed(project: dict) -> tuple[dict[str, str], list[str]]:
    """name -> version of what the project and its extras need, and the names of what is not here."""
    own = canonicalize_name(project["name"])
    words = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        words += extra
    found, missing, seen = dict[str, str](), list[str](), set[tuple[str, str]]()
    waiting = [Requirement(word) for word in words]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = [extra for extra in ("", *sorted(requirement.extras)) if (name, extra) not in seen]
        unwanted = requirement.marker and not requirement.marker.evaluate({"extra": ""})
        if name == own or not extras or unwanted:
            continue
        seen |= {(name, extra) for extra in extras}
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        found[name] = Version(package.version).public
        for further in map(Requirement, package.requires or []):
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                further.marker = None
                waiting.append(further)
    return dict(sorted(found.items())), sorted(missing)


def pinned() -> dict[str, str]:
    """name -> version, as the file has them."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return {name: version for name, equals, version in (line.partition("==") for line in lines) if equals}


def main(words: list[str]) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, missing = installed(project)
    if words == ["--check"]:
        wanted, here = pinned(), found | dict.fromkeys(missing, "none")
        differ = {name: version for name, version in here.items() if wanted.get(name) != version}
        for name, version in differ.items():
            print(f"{name}: {version} is installed, {wanted.get(name, 'none')} in constraints.txt")
        mend = ": make constraints writes what is installed" if differ else ""
        print(f"{len(here) - len(differ)} of {len(here)} packages as in constraints.txt{mend}")
        return 0
    if missing:
        print(f"error: {missing[0]} is not installed: .venv/bin/python -m pip install -e '.[bench,dev,ray]'")
        return 2
    python = ".".join(map(str, sys.version_info[:2]))
    lines = [f"{name}=={version}\n" for name, version in found.items()]
    FILE.write_text(HEADER.format(python=python, platform=sys.platform) + "".join(lines), encoding="utf-8")
    print(f"{FILE.name}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
