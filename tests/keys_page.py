"""Writes docs/keys.md from the declarations in runs/record/keys.py: make keys."""

from pathlib import Path

from runs.record.keys import KEYS, Key, Role

PAGE = Path(__file__).parents[1] / "docs" / "keys.md"

INTRODUCTION = """\
# Keys of a run

This page lists every key of a run's configuration with the values that it takes.
Keys are grouped by what happens when you change them. Some make another run with an id
of its own; others only change where files lie or how fast the run is.

- `vera-bench --cfg job sources=true` shows the value of each key in your run, and where
  it comes from.
- `vera-bench --help task=mrpc` explains the keys, with the comments of `conf/`.
- "As its file says" means that the value needs the type that it has in the file of its
  method or task. A file of your own may have further keys; they define the result.
- "Default before" is what every run did before the key was added. With that value, a
  run keeps its id.

`make keys` writes this page from `runs/record/keys.py`.
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
    """The text of docs/keys.md."""
    parts = [INTRODUCTION]
    for role in ORDER:
        keys = [key for key in KEYS.values() if key.role == role]
        keys.sort(key=lambda key: key.name)
        parts.append(f"\n## {TITLES[role]}\n\n{role.value}\n\n")
        parts.append("| key | takes | default before |\n")
        parts.append("|---|---|---|\n")
        parts += [table_line(key) for key in keys]
    return "".join(parts)


def table_line(key: Key) -> str:
    """The line of a key in its table."""
    default_before = ""
    if key.added:
        default_before = f"`{as_typed(key.added.neutral)}`"
        if key.added.families:
            default_before += f" in {', '.join(key.added.families)}"
    return f"| `{key.name}` | {key.values} | {default_before} |\n"


def as_typed(value: object) -> str:
    """A value as a user types it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
