"""Weights & Biases, a view of the records: settings (settings.py), what is sent
(content.py), and the process that sends it (tracker.py). It imports neither torch nor
Hydra, since analysis/ reads it, too."""
