"""What leaves this machine: the check of a study (study_check.py, for runs.publish), and
a benchmark's result file and the card of an adapter (result_file.py and card.md, for
runs.export)."""
