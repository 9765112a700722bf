"""A run's record: one small JSON file. The only truth about a run; tables, plots and dashboards are made from
it.

schema.py says what a record holds and checks it, metric.py what its number means; ledger.py reads one, or
all; files.py writes them, whole or not at all; selection.py says which epoch is the best by a protocol,
rows.py which row of a table a run belongs to, sweeps.py which runs a sweep has, and paths.py takes local
paths out. No torch and no Hydra: analysis/ reads the ledger through this package.
"""

from runs.record.cell import (
    COMPUTED,
    NOT_SETTINGS,
    READS_LENGTH_GROUPED,
    cell_id,
    defining,
    is_trial,
    protocol,
)
from runs.record.files import (
    cache_folder,
    check_regular,
    link_or_fail,
    measure_path,
    measure_text,
    read_regular,
    record_path,
    record_text,
    records_folder,
    run_folder,
    sweep_up_dead,
    write_atomically,
    write_record,
)
from runs.record.ledger import (
    PUBLISHED,
    Ledger,
    read_ledger,
    read_measure,
    read_record,
    read_study,
    study_folders,
)
from runs.record.measure import MEASURE_SCHEMA
from runs.record.metric import Metric
from runs.record.paths import without_paths
from runs.record.rows import SCALINGS, from_recipe, lora_scaling, proportional_alpha, row_label
from runs.record.schema import FINISHED, SCHEMA, Record
from runs.record.selection import best_and_last, crossfit, crossfit_of
from runs.record.sweeps import read_sweep, sweep_names, sweep_path, write_sweep

__all__ = [
    "COMPUTED",
    "FINISHED",
    "MEASURE_SCHEMA",
    "NOT_SETTINGS",
    "PUBLISHED",
    "READS_LENGTH_GROUPED",
    "SCALINGS",
    "SCHEMA",
    "Ledger",
    "Metric",
    "Record",
    "best_and_last",
    "cache_folder",
    "cell_id",
    "check_regular",
    "crossfit",
    "crossfit_of",
    "defining",
    "from_recipe",
    "is_trial",
    "link_or_fail",
    "lora_scaling",
    "measure_path",
    "measure_text",
    "proportional_alpha",
    "protocol",
    "read_ledger",
    "read_measure",
    "read_record",
    "read_regular",
    "read_study",
    "read_sweep",
    "record_path",
    "record_text",
    "records_folder",
    "row_label",
    "run_folder",
    "study_folders",
    "sweep_names",
    "sweep_path",
    "sweep_up_dead",
    "without_paths",
    "write_atomically",
    "write_record",
    "write_sweep",
]
