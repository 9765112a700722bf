"""Writes docs/results.md and a page for each study in docs/results: what this project's own studies found,
from the records published in runs/records.

    python -m analysis.results                 (make results)
    python -m analysis.results check=true

A study is a folder of published records. NOTES.md in it, written by hand, says how it was run and what is to
be known of it; every number and picture comes from the records. check=true writes nothing and says whether
the pages are those of the records.
"""

from dataclasses import dataclass
from pathlib import Path

from analysis.results import page
from analysis.results.readme import headline, readme
from runs.command import Common, entry_point, read, setting
from runs.errors import UserError
from runs.record import read_study, study_folders, write_atomically

README = Path(__file__).parent.parent.parent / "README.md"
#: The studies whose tables the README shows; docs/results.md has those of all.
FRONT = ("glue_minilm",)


@dataclass(frozen=True)
class Settings(Common):
    """What is written, or only compared."""

    docs: Path = setting(README.parent / "docs", "where results.md and results/ go")
    readme: Path = setting(README, "the file whose tables are written, too")
    check: bool = setting(False, "write nothing; exit code 1 where the records say otherwise")


def main(arguments: list[str]) -> int:
    settings = read(arguments, Settings).settings
    docs, front = settings.docs, settings.readme
    folders = study_folders()
    if not folders:
        raise UserError("no published records in runs/records yet (make publish STUDY=name)")
    made = page(folders, docs)
    files = {docs / path: text for path, text in made.texts.items()}
    shown_ = [folder for folder in folders if folder.name in FRONT]
    text = front.read_text() if shown_ else ""
    for folder in shown_:
        text = readme(text, folder.name, headline(read_study(folder)))
    files |= {front: text} if shown_ else {}
    if settings.check:
        stale = [str(path) for path, text in files.items() if not path.is_file() or path.read_text() != text]
        # Their bytes are matplotlib's
        stale += [str(docs / path) for path in made.pictures if not (docs / path).is_file()]
        print(
            "\n".join(f"{path} is not what the records say: make results" for path in stale)
            or "as the records say"
        )
        return 1 if stale else 0
    for path, picture in made.pictures.items():
        write_atomically(docs / path, picture)
    kept = {docs / path for path in (*made.pictures, *made.texts)}
    for old in {path for kind in ("*.svg", "*.md") for path in (docs / "results").glob(kind)} - kept:
        old.unlink()
    for file, text in files.items():
        write_atomically(file, text)
        print(f"Results: {file}")
    return 0


if __name__ == "__main__":
    entry_point(main)
