"""A run's record: one small JSON file, from which tables, figures and dashboards are made.

schema.py: what a record holds, and its check; cell.py: which settings define a result, and the row of a table
that a run belongs to; metric.py: what its number means, the epoch that a protocol chooses, a cell's seeds;
files.py writes records, ledger.py reads them. No torch and no Hydra: analysis/ reads records through this
package.
"""

from runs.record.cell import (
    COMPUTED,
    NOT_SETTINGS,
    READS_LENGTH_GROUPED,
    cell_id,
    defining,
    from_recipe,
    is_trial,
    lora_scaling,
    other_data_seed,
    protocol,
    row_label,
)
from runs.record.files import (
    CONF,
    INSTALLED,
    PUBLISHED,
    ROOT,
    built_from,
    hide_paths,
    is_dead,
    link_or_fail,
    read_regular,
    read_sweep,
    record_path,
    record_text,
    records_folder,
    run_folder,
    sweep_names,
    sweep_up_dead,
    temporary,
    without_paths,
    write_atomically,
    write_measure,
    write_record,
    write_sweep,
)
from runs.record.ledger import (
    Ledger,
    finished_record,
    read_ledger,
    read_measure,
    read_record,
    read_study,
    study_folders,
)
from runs.record.metric import (
    INTERVAL_SEEDS,
    LEVEL,
    Metric,
    best_and_last,
    crossfit,
    crossfit_of,
    dev_halves,
    epoch_of_table,
    interval_name,
    median_interval,
    one_class,
    one_each,
    sample_deviation,
    seed_value,
    text_score,
)
from runs.record.schema import FINISHED, MEASURE_SCHEMA, SCHEMA, Record
