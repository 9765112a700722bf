"""docs/keys.md, from the declarations in runs/record/keys.py: make keys."""

from pathlib import Path

from runs.record.keys import KEYS, Key, Role

PAGE = Path(__file__).parents[1] / "docs" / "keys.md"

INTRODUCTION = """\
# Keys of a run

This page lists every key of a run's configuration, what you can set it to, and what
kind of key it is. The kind tells you what happens when you change it: some keys make
another run with an id of its own, others only change where files lie or how fast the
run is. `make keys` writes the page from `runs/record/keys.py`.

To see the values of a run and where each one comes from, type
`python -m runs --cfg job sources=true` with the run's overrides. The comments in
`conf/` explain the keys one by one; `python -m runs --help task=mrpc` prints them for a
choice. A method or task of your own may have further keys. They define the result.
"""

#: The order of the page: what defines a run comes first.
ORDER = (
    Role.RESULT,
    Role.SEED,
    Role.CONTENT,
    Role.PATH,
    Role.CHECKED,
    Role.DEFAULTS,
    Role.COMPUTING,
    Role.OUTCOME,
    Role.DISPLAY,
)
TITLES = {
    Role.RESULT: "Keys that define the result",
    Role.SEED: "Seeds",
    Role.CONTENT: "Where files come from",
    Role.PATH: "Local paths",
    Role.CHECKED: "Checked keys",
    Role.DEFAULTS: "Keys that set other keys",
    Role.COMPUTING: "How a run is computed",
    Role.OUTCOME: "What is kept and shown",
    Role.DISPLAY: "Names",
}


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for role in ORDER:
        keys = [key for key in KEYS.values() if key.role == role]
        keys.sort(key=lambda key: key.name)
        parts.append(f"\n## {TITLES[role]}\n\n{role.value}\n\n")
        parts.append("| key | takes | added later, with this meaning before |\n")
        parts.append("|---|---|---|\n")
        parts += map(row, keys)
    return "".join(parts)


def row(key: Key) -> str:
    """A line of a table."""
    before = ""
    if key.added:
        before = f"`{written(key.added.neutral)}`"
        if key.added.families:
            before += f" in {', '.join(key.added.families)}"
    return f"| `{key.name}` | {key.values} | {before} |\n"


def written(value: object) -> str:
    """A value as a user types it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else f"{value}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
