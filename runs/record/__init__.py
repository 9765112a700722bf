"""A run's record: one small JSON file, from which tables, figures and dashboards are made.

schema.py: what a record holds, and its check; metric.py: what its number means; cell.py: which settings
define a result; ledger.py reads records, files.py writes them; selection.py: which epoch a protocol chooses;
rows.py: the row of a table that a run belongs to; seeds.py: a cell's seeds and their median's interval;
sweeps.py: which runs a sweep has; measure.py: what figures are drawn from; place.py: where the project's own
files are. No torch and no Hydra: analysis/ reads records through this package.
"""

from runs.record.cell import (
    COMPUTED,
    NOT_SETTINGS,
    READS_LENGTH_GROUPED,
    cell_id,
    defining,
    is_trial,
    other_data_seed,
    protocol,
)
from runs.record.files import (
    hide_paths,
    is_dead,
    link_or_fail,
    read_regular,
    record_path,
    record_text,
    records_folder,
    run_folder,
    sweep_up_dead,
    temporary,
    without_paths,
    write_atomically,
    write_measure,
    write_record,
)
from runs.record.ledger import (
    Ledger,
    finished_record,
    read_ledger,
    read_measure,
    read_record,
    read_serving,
    read_study,
    study_folders,
)
from runs.record.measure import MEASURE_SCHEMA
from runs.record.metric import Metric
from runs.record.place import CONF, INSTALLED, PUBLISHED, ROOT, built_from
from runs.record.rows import from_recipe, lora_scaling, row_label
from runs.record.schema import FINISHED, SCHEMA, Record
from runs.record.seeds import (
    INTERVAL_SEEDS,
    LEVEL,
    epoch_of_table,
    interval_name,
    median_interval,
    one_class,
    one_each,
    sample_deviation,
    seed_value,
    text_score,
)
from runs.record.selection import best_and_last, crossfit, crossfit_of
from runs.record.sweeps import read_sweep, sweep_names, write_sweep
