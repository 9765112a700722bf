"""Writes docs/results.md and a page for each study in docs/results, from the records in
runs/records; and docs/others.md, from analysis/printed/others.yaml.

    python -m analysis.results (make results) python -m analysis.results check=true
    (only compares the pages with the records)

A study is a folder of published records. Its NOTES.md is written by hand; every number
and picture comes from the records."""

from dataclasses import dataclass
from pathlib import Path

from analysis.frame import runs
from analysis.results.pages import headline, near_lora, pages, readme
from runs.command import Common, entry_point, read, setting
from runs.errors import UserError
from runs.record import INSTALLED, ROOT, read_study, study_folders, write_atomically

README = ROOT / "README.md"
#: The study whose table the README shows.
FRONT = "glue_minilm"


@dataclass(frozen=True)
class Settings(Common):
    """What is written, or only compared."""

    docs: Path = setting(README.parent / "docs", "where results.md and results/ go")
    readme: Path = setting(README, "the file whose table is written, too")
    check: bool = setting(
        False, "write nothing; exit code 1 where a page is not what the records give"
    )


def main(arguments: list[str]) -> int:
    settings = read(arguments, Settings).settings
    if INSTALLED and settings.readme == README:
        raise UserError(
            "the pages are a clone's, and this is none: docs= and readme= name others"
        )
    studies = {folder: read_study(folder) for folder in study_folders()}
    if not studies:
        raise UserError(
            "no published records in runs/records yet (make publish STUDY=name)"
        )
    made, summed = pages(studies, settings.docs)
    files = {settings.docs / path: text for path, text in made.items()}
    for folder, ledger in studies.items():
        if folder.name == FRONT:
            text = readme(settings.readme.read_text(), FRONT, headline(runs(ledger)))
            files[settings.readme] = readme(text, "all studies", near_lora(summed))
    written = (
        path
        for path in (settings.docs / "results").glob("*")
        if path.suffix in (".md", ".svg")
    )
    # of studies that are no more
    gone = [path for path in written if path not in files]
    if settings.check:
        # A picture's bytes depend on matplotlib's version
        stale = gone + [
            path
            for path, text in files.items()
            if not path.is_file()
            or (path.suffix != ".svg" and path.read_text() != text)
        ]
        print(
            *(f"{path} is not what the records give: make results" for path in stale),
            sep="\n",
        )
        return 1 if stale else 0
    for path in gone:
        path.unlink()
    for path, text in files.items():
        write_atomically(path, text)
    print(f"Results: {settings.docs / 'results.md'}, and {len(files) - 1} files more")
    return 0


if __name__ == "__main__":
    entry_point(main)
