"""What leaves this machine: the check of a study (study_check.py, for runs.publish); the
folder of an adapter with its card (adapter_folder.py, card.py), its upload to the hub
(hub.py) and a benchmark's result file (result_file.py), for runs.export."""
