"""Publishes records: copies finished ones from outputs/records to runs/records/STUDY, to be committed.

python -m runs.publish STUDY                        every finished record of this machine, without copies of
                                                    published ones
python -m runs.publish STUDY experiment=table2_base    those of a preset, or of whatever else names runs

There records.jsonl has a line for each, sorted by id, and measures.jsonl for each measure (runs/measure) of
them."""

import re

from runs.command import COMPOSING, OfRecords, entry_point, open_ledger, read
from runs.config import read_command
from runs.errors import UserError
from runs.identity import identify
from runs.provenance import is_committed
from runs.record import FINISHED, INSTALLED, plural, read_ledger, read_study, without_paths, write_study
from runs.record import ledger as files


def main(arguments: list[str]) -> int:
    line = read(arguments, OfRecords, "STUDY", "the runs, as for python -m runs", COMPOSING, __name__)
    (study,), output = line.names, line.settings.output
    if INSTALLED:
        raise UserError("runs.publish writes into runs/records of a clone, which an installed package is not")
    if not re.fullmatch(r"[a-z0-9_]+", study):
        raise UserError(f"study {study!r}: a name of a-z, 0-9 and _, such as glue_minilm")
    ledger, origin = open_ledger(output, published=False), read_ledger(output).origin
    own = {name for name in ledger.records if origin[name] == "ours"}
    words, named = [*line.overrides, f"output={output}"], line.overrides or line.options
    wanted = set(identify(read_command(words, line.config_dir).runs)) if named else own
    finished = [record for record in ledger if record["id"] in wanted and record["status"] in FINISHED]
    records = [record for record in finished if record["config"]["train"]["max_steps"] is None]
    if not records:
        copies = ": what is there was copied from published studies" if ledger.records and not own else ""
        raise UserError(f"no finished record to publish in {output}/records{copies}")
    if problems := read_study(folder := files.PUBLISHED / study).problems:
        raise UserError(f"{problems[0]}. Mend or remove it first")
    published = {record["id"] for record in records}
    measures = [m for m in ledger.measures.values() if {run["id"] for run in m["of"]} <= published]
    write_study(folder, [*map(without_paths, records)], measures)
    dirty = sum(not is_committed(record) for record in records)
    note = f" ({dirty} made with code that is in no commit of this repository)" if dirty else ""
    print(f"{plural(len(records), 'record')} in runs/records/{study}{note}")
    if measures:
        print(f"{plural(len(measures), 'measure')} in runs/records/{study}/measures.jsonl")
    if not (folder / "NOTES.md").is_file():
        print(f"To be written: runs/records/{study}/NOTES.md, on how it was run, for docs/results.md")
    if trials := len(finished) - len(records):
        print(f"{trials} left out: trials that train.max_steps stopped early")
    return 0


if __name__ == "__main__":
    entry_point(main)
