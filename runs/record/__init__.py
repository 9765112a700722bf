"""A run's record: one small JSON file, or published a line, from which tables, figures
and dashboards come.

keys.py declares the keys of a configuration with their roles; schema.py says what a
record holds, and checks it; cell.py says which settings define a result, what its
number means, and which records are the seeds of one cell; collapse.py says which runs
predict one class; ledger.py writes and reads records; redaction.py takes local paths
out of them; spreadsheet.py writes CSV files. No torch and no Hydra: analysis/ reads
records through this package."""
