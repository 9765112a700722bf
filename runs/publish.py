"""Publishes records: copies finished ones from outputs/records to runs/records/STUDY,
to be committed; or into one zip, for those who keep this project's records.

python -m runs.publish STUDY                        every finished record of this machine, without copies of
                                                    published ones
python -m runs.publish STUDY experiment=table2_base    those of a preset, or of whatever else names runs
python -m runs.publish STUDY sweep=last             those of a sweep
python -m runs.publish out=mine.zip                 the same, as a zip, also from an installed package
python -m runs.publish check=mine.zip               what a zip lacks, a line each (exit code 1); runs no code
python -m runs.publish add=mine.zip                 a zip without a fault, in runs/records/community/AUTHOR

In runs/records/STUDY records.jsonl has a line for each, sorted by id, and
measures.jsonl for each measure (runs/measure) of them. A zip has these two, own methods
and tasks, the commit of this project, and notes, which are written into mine.md first:
the same command again takes them in."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from runs import submission
from runs.command import (
    COMPOSING,
    Line,
    OfRecords,
    entry_point,
    one_of,
    open_ledger,
    read,
    setting,
)
from runs.config import read_command
from runs.errors import UserError
from runs.identity import identify
from runs.provenance import is_committed
from runs.record import (
    FINISHED,
    INSTALLED,
    Record,
    is_trial,
    plural,
    read_ledger,
    without_paths,
)
from runs.record import ledger as files


@dataclass(frozen=True)
class Settings(OfRecords):
    """Which runs are published, and where."""

    sweep: str | None = setting(
        None, "the runs of this sweep, by its name (last: the newest)"
    )
    out: Path | None = setting(None, "a zip to be written, instead of a study")
    author: str | None = setting(
        None, "with out=: the name to be shown, of a-z, 0-9, _ (null: the file's)"
    )
    check: Path | None = setting(None, "a zip to be judged; nothing is written")
    add: Path | None = setting(
        None, "a zip to be judged and filed; tables have it by community=true"
    )


def main(arguments: list[str]) -> int:
    zipped = any(word.startswith(("out=", "check=", "add=")) for word in arguments)
    names, words = "" if zipped else "STUDY", "the runs, as for python -m runs"
    line = read(arguments, Settings, names, words, COMPOSING)
    out, given = line.settings.out, line.settings.add or line.settings.check
    if given:
        if len(line.given) > 1 or line.overrides:
            raise UserError(f"{given}: check= and add= take no other words")
        found = submission.read(given)
        code = judge(given, found)
        return code if line.settings.check or code else add(given, found)
    if out:
        author = line.settings.author or out.stem
        if out.suffix != ".zip" or not submission.NAME.fullmatch(author):
            raise UserError(
                f"out={out}: a file such as my_name.zip, or author= a name of a-z, 0-9 and _"
            )
        submission.write(out, author, chosen(line)[0], line.config_dir)
        return judge(out, submission.read(out))
    return publish(line)


def judge(path: Path, found: submission.Submission) -> int:
    """Prints what a zip lacks. Returns the exit code."""
    for problem in (problems := submission.problems(found)):
        print(problem)
    if found.about["files"] is None or not submission.has_history():
        print(
            "not checked: the files of the project itself, since an installed package has no commits"
        )
    count = plural(len(found.records), "record")
    print(
        f"{path}: {count} of {found.about['author']}, {plural(len(problems), 'problem')}"
    )
    return 1 if problems else 0


def add(path: Path, found: submission.Submission) -> int:
    """Files a zip, beside its records and notes. Raises UserError for an author who has
    a folder already."""
    if INSTALLED:
        raise UserError(
            f"add={path}: community is a folder of a clone, which an installed package is not"
        )
    folder = files.PUBLISHED / "community" / found.about["author"]
    if folder.exists():
        raise UserError(
            f"runs/records/community/{folder.name} is there already: out= with another author="
        )
    files.write_study(folder, found.records)
    files.write_atomically(folder / "NOTES.md", found.notes)
    shutil.copyfile(path, folder / "submission.zip")
    where, table = (
        f"runs/records/community/{folder.name}",
        "python -m analysis.tables community=true",
    )
    print(f"In {where}, to be committed; {table}")
    return 0


def chosen(line: Line[Settings]) -> tuple[list[Record], list[Record]]:
    """The finished records that a command names, without paths, and the measures of
    them alone."""
    output, sweep = line.settings.output, line.settings.sweep
    ledger, origin = open_ledger(output, published=False), read_ledger(output).origin
    own = {name for name in ledger.records if origin[name] == "ours"}
    words, named = [*line.overrides, f"output={output}"], line.overrides
    wanted = set(identify(read_command(words, line.config_dir).runs)) if named else own
    if sweep:
        known = files.sweep_names(output)
        name = known[0] if sweep == "last" and known else sweep
        wanted &= {*files.read_sweep(output, one_of("sweep", name, known))}
    finished = [
        record
        for record in ledger
        if record["id"] in wanted and record["status"] in FINISHED
    ]
    # A study may have trials of rates, as of runs.tune
    trial = (
        is_trial
        if line.settings.out
        else lambda config: config["train"]["max_steps"] is not None
    )
    records = [record for record in finished if not trial(record["config"])]
    if not records:
        copies = (
            ": what is there was copied from published studies"
            if ledger.records and not own
            else ""
        )
        raise UserError(f"no finished record to publish in {output}/records{copies}")
    if trials := len(finished) - len(records):
        print(f"{trials} left out: trials")
    published = {record["id"] for record in records}
    measures = [
        m
        for m in ledger.measures.values()
        if {run["id"] for run in m["of"]} <= published
    ]
    return [*map(without_paths, records)], measures


def publish(line: Line[Settings]) -> int:
    """Writes a study of this project."""
    (study,) = line.names
    if INSTALLED:
        raise UserError(
            "STUDY is a folder of a clone, which an installed package is not: out=mine.zip"
        )
    if not re.fullmatch(r"[a-z0-9_]+", study):
        raise UserError(
            f"study {study!r}: a name of a-z, 0-9 and _, such as glue_minilm"
        )
    records, measures = chosen(line)
    if problems := files.read_study(folder := files.PUBLISHED / study).problems:
        raise UserError(f"{problems[0]}. Mend or remove it first")
    files.write_study(folder, records, measures)
    dirty = sum(not is_committed(record) for record in records)
    note = (
        f" ({dirty} made with code that is in no commit of this repository)"
        if dirty
        else ""
    )
    print(f"{plural(len(records), 'record')} in runs/records/{study}{note}")
    if measures:
        print(
            f"{plural(len(measures), 'measure')} in runs/records/{study}/measures.jsonl"
        )
    if not (folder / "NOTES.md").is_file():
        print(
            f"To be written: runs/records/{study}/NOTES.md, on how it was run, for docs/results.md"
        )
    return 0


if __name__ == "__main__":
    entry_point(main)
