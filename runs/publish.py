"""Publishes records: copies finished ones from outputs/records to runs/records/STUDY,
where you commit them.

vera-bench publish STUDY
    every finished record of this machine that is not published yet
vera-bench publish STUDY experiment=table2_base
    those of a preset, or of other overrides
vera-bench publish STUDY sweep=last
    those of a sweep
vera-bench publish check=FOLDER
    prints what a study lacks, one line each (exit code 1), and runs no code

In the folder, records.jsonl has one line for each record, sorted by id, and
measures.jsonl one for each measure of them (`vera-bench measure`). sources/ holds
methods and configuration files from outside the clone. An installed package writes the
folder STUDY below the current one (or below into=FOLDER); add it to a clone as
runs/records/STUDY.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runs.command.advice import require_known
from runs.command.errors import UserError
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommandLine,
    RecordSettings,
    entry_point,
    read_command_line,
    setting,
)
from runs.command.records import open_ledger
from runs.config import GROUPS, read_command
from runs.publishing import study_check
from runs.record import ledger
from runs.record.derived import NOT_PROVABLE
from runs.record.files import write_atomically
from runs.record.ledger import INSTALLED, read_ledger
from runs.record.redaction import without_paths
from runs.record.schema import FINISHED, Measure, Record
from runs.record.sweeps import read_sweep, sweep_names
from runs.record.text import plural
from runs.run import provenance
from runs.run.identity import identify
from runs.run.provenance import is_committed
from tasks.files import module_file


@dataclass(frozen=True)
class Settings(RecordSettings):
    """Which runs are published, or which study is checked."""

    sweep: str | None = setting(
        None, "the runs of this sweep, by its name (last: the newest)"
    )
    into: Path | None = setting(
        None,
        "where the folder STUDY is written (null: runs/records of a clone, else here)",
    )
    check: Path | None = setting(
        None, "the folder of a study to be checked; nothing is written"
    )


def main(arguments: list[str]) -> int:
    is_check = any(argument.startswith("check=") for argument in arguments)
    line = read_command_line(
        arguments,
        Settings,
        positional="" if is_check else "STUDY",
        overrides_help="the runs, as for vera-bench run",
        options=COMPOSING_OPTIONS,
    )
    folder = line.settings.check
    if not folder:
        return publish_study(line)
    if len(line.given) > 1 or line.overrides:  # more than check= itself
        raise UserError(f"check={folder} takes no other words")
    return check_study(folder)


def check_study(folder: Path) -> int:
    """Prints what a study lacks. Returns the exit code."""
    study = study_check.read_study_folder(folder)
    problems = study_check.problems_of_study(study)
    for problem in problems:
        print(problem)
    if not study_check.has_history():
        print("not checked: the code, since an installed package has no commits")
    print(f"not provable from records: {', '.join(NOT_PROVABLE)}")
    count = plural(len(study.records), "record")
    print(f"{folder}: {count}, {plural(len(problems), 'problem')}")
    return 1 if problems else 0


def records_to_publish(
    line: CommandLine[Settings],
) -> tuple[list[Record], list[Measure]]:
    """The finished records that a command names, without paths, and the measures whose
    runs are all among them."""
    output = line.settings.output
    own_ledger = open_ledger(output, published=False)
    # read_ledger also reads the published records, whose copies in the output folder
    # then have their study as origin
    origin = read_ledger(output).origin
    own_ids = {run_id for run_id in own_ledger.records if origin[run_id] == "ours"}
    ids_of_command = _ids_of_command(line, own_ids)
    records = []
    cut_short = 0
    for record in own_ledger:
        if record["id"] not in ids_of_command or record["status"] not in FINISHED:
            continue
        # trials of learning rates may be published, runs of a few steps may not
        if record["config"]["train"]["max_steps"] is None:
            records.append(record)
        else:
            cut_short += 1
    if not records:
        message = f"no finished record to publish in {output}/records"
        if own_ledger.records and not own_ids:
            message += ": what is there was copied from published studies"
        raise UserError(message)
    if cut_short:
        print(f"{cut_short} left out: stopped early (train.max_steps)")
    published_ids = {record["id"] for record in records}
    measures = []
    for measure in own_ledger.measures.values():
        measured_ids = {run["id"] for run in measure["of"]}
        if measured_ids <= published_ids:
            measures.append(measure)
    return [without_paths(record) for record in records], measures


def _ids_of_command(line: CommandLine[Settings], own_ids: set[str]) -> set[str | None]:
    """The ids of the runs that the overrides of a command compose, or else all of
    `own_ids`, the runs of this machine. With sweep= only those of that sweep. None is
    among them where a composed run has no id yet."""
    output = line.settings.output
    sweep = line.settings.sweep
    ids: set[str | None] = {*own_ids}
    if line.overrides:
        overrides = [*line.overrides, f"output={output}"]
        ids = set(identify(read_command(overrides, line.config_dir).runs))
    if sweep:
        names = sweep_names(output)
        name = names[0] if sweep == "last" and names else sweep
        ids &= {*read_sweep(output, require_known("sweep", name, names))}
    return ids


def publish_study(line: CommandLine[Settings]) -> int:
    """Writes a study into the folder of that name: in into= if it is given, else in
    runs/records of this clone, else (installed) in the current folder. Returns the exit
    code."""
    (name,) = line.positional
    if not study_check.STUDY_NAME.fullmatch(name):
        raise UserError(
            f"study {name!r}: a name of a-z, 0-9 and _, such as glue_minilm"
        )
    records, measures = records_to_publish(line)
    into = line.settings.into
    if into is None and not INSTALLED:
        folder = ledger.PUBLISHED / name
        printed_folder = Path("runs", "records", name)
    else:
        folder = (into or Path()) / name
        printed_folder = folder
    problems = ledger.read_study(folder).problems
    if problems:
        raise UserError(f"{problems[0]}. Mend or remove it first")
    sources = own_sources(records, line.config_dir)
    ledger.write_study(folder, records, measures)
    for source_name, text in sources.items():
        write_atomically(folder / "sources" / source_name, text)
    notes = folder / "NOTES.md"
    if not notes.exists():
        write_atomically(notes, study_check.NOTES_TEMPLATE)
    uncommitted = sum(not is_committed(record) for record in records)
    summary = f"{plural(len(records), 'record')} in {printed_folder}"
    if uncommitted:
        summary += (
            f" ({uncommitted} made with code that is in no commit of this repository)"
        )
    print(summary)
    if measures:
        print(f"{plural(len(measures), 'measure')} in {printed_folder}/measures.jsonl")
    if notes.read_text(encoding="utf-8") == study_check.NOTES_TEMPLATE:
        print(f"To be written: {printed_folder}/NOTES.md, on how it was run")
    print(f"To see what it lacks: vera-bench publish check={printed_folder}")
    return 0


def own_sources(records: Sequence[Record], config_dir: str | None) -> dict[str, str]:
    """The texts of the methods and configuration files that these runs used and that
    are not in this project, by their names in sources/. Raises UserError for a file
    that is no text."""
    paths = dict[str, Path]()
    for kind in sorted({record["config"]["method"]["kind"] for record in records}):
        # of somebody's own method, the kind is a dotted name such as mine.MyMethod
        module = module_file(kind)
        if not module or not module.is_file() or module.is_relative_to(ledger.ROOT):
            continue
        for path in (module, *provenance.imports_of(module)):
            paths[path.name] = path
    if config_dir:
        folder = Path(config_dir)
        for group in GROUPS:
            for path in folder.glob(f"{group}/**/*.yaml"):
                paths[f"config/{path.relative_to(folder).as_posix()}"] = path
    texts = {}
    try:
        for name, path in paths.items():
            texts[name] = ledger.read_regular(path, study_check.MAX_TEXT_BYTES).decode()
    except ValueError as error:
        raise UserError(f"a method or a file of configuration: {error}") from None
    return texts


if __name__ == "__main__":
    entry_point(main)
