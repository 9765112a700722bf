"""Writes docs/results.md and a page for each study in docs/results, from the records in
runs/records; docs/starting_rates.md with conf/rates.yaml, from their trials; and
docs/others.md, from analysis/printed/others.yaml.

python -m analysis.results             writes the pages (make results)
python -m analysis.results check=true  compares the pages with the records

A study is a folder of published records. Its NOTES.md is a template: words by hand,
numbers from the records (numbers.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.results.pages import pages, readme_block, readme_with_block
from runs.command.errors import UserError
from runs.command.parser import CommonSettings, entry_point, read_command_line, setting
from runs.record.files import write_atomically
from runs.record.ledger import INSTALLED, ROOT, read_study, study_folders

README = ROOT / "README.md"


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Which files are written, or only compared with the records."""

    docs: Path = setting(README.parent / "docs", "where results.md and results/ go")
    readme: Path = setting(
        README, "the file whose paragraph on results is written, too"
    )
    rates: Path = setting(
        ROOT / "conf" / "rates.yaml", "what train.lr=auto reads, which is written, too"
    )
    check: bool = setting(
        False, "write nothing; exit code 1 where a page is not what the records give"
    )


def main(arguments: list[str]) -> int:
    settings = read_command_line(arguments, Settings).settings
    if INSTALLED and settings.readme == README:
        raise UserError(
            "the pages to write are in a clone, and this is an installed package: name "
            "other files with docs=, readme= and rates="
        )
    ledgers = {folder: read_study(folder) for folder in study_folders()}
    if not ledgers:
        raise UserError(
            "no published records in runs/records yet (make publish STUDY=name)"
        )
    generated = pages(ledgers, settings.docs)
    files = {settings.docs / path: text for path, text in generated.files.items()}
    block = readme_block(generated.findings, generated.example)
    files[settings.readme] = readme_with_block(settings.readme.read_text(), block)
    if generated.rates:
        files[settings.rates] = generated.rates
    obsolete = obsolete_pages(settings.docs / "results", files)
    if settings.check:
        stale = obsolete + stale_pages(files)
        for path in stale:
            print(f"{path} is not what the records give: make results")
        return 1 if stale else 0
    for path in obsolete:
        path.unlink()
    for path, text in files.items():
        write_atomically(path, text)
    print(f"Results: {settings.docs / 'results.md'}, and {len(files) - 1} files more")
    return 0


def obsolete_pages(folder: Path, files: Mapping[Path, str]) -> list[Path]:
    """The pages and pictures in a folder that are no longer generated, such as those of a
    study that was renamed. files: those that are generated."""
    existing = [path for path in folder.glob("*") if path.suffix in (".md", ".svg")]
    return [path for path in existing if path not in files]


def stale_pages(files: Mapping[Path, str]) -> list[Path]:
    """The files that are missing or have another text than they should. files: the text
    that each should have. Pictures only have to exist, since their bytes depend on
    matplotlib's version."""
    return [
        path
        for path, text in files.items()
        if not path.is_file() or (path.suffix != ".svg" and path.read_text() != text)
    ]


if __name__ == "__main__":
    entry_point(main)
