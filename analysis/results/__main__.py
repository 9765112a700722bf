"""Writes docs/results.md: what this project's own studies found, from the records published in runs/records.

    python -m analysis.results [--docs docs] [--check]       (make results)

A study is a folder of published records. NOTES.md in it, written by hand, says how it was run and what is to
be known of it; every number and picture comes from the records. --check writes nothing and says whether the
page is that of the records.
"""

import argparse
import sys
from pathlib import Path

from analysis.command import entry_point
from analysis.results import page
from analysis.results.readme import headline, readme
from runs.record import read_study, study_folders, write_atomically

README = Path(__file__).parent.parent.parent / "README.md"
#: The studies whose tables the README shows.
FRONT = ("glue_minilm", "e2e_smollm2", "images_dinov2", "alpaca_smollm2")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--docs", default=str(README.parent / "docs"), help="where results.md and results/ go"
    )
    parser.add_argument("--readme", default=str(README), help="the file whose tables are written, too")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where the records say otherwise"
    )
    options = parser.parse_args(arguments)
    docs, front = Path(options.docs), Path(options.readme)
    folders = study_folders()
    if not folders:
        print("error: no published records in runs/records yet (make publish STUDY=name)", file=sys.stderr)
        return 2
    made = page(folders, docs)
    files = {docs / "results.md": made.text}
    shown_ = [folder for folder in folders if folder.name in FRONT]
    try:
        text = front.read_text() if shown_ else ""
        for folder in shown_:
            text = readme(text, folder.name, headline(read_study(folder)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files |= {front: text} if shown_ else {}
    if options.check:
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
    for old in set((docs / "results").glob("*.svg")) - {docs / path for path in made.pictures}:
        old.unlink()
    for file, text in files.items():
        write_atomically(file, text)
        print(f"Results: {file}")
    return 0


if __name__ == "__main__":
    entry_point(main)
