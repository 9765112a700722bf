"""Weights & Biases, a view of the records: what is sent (content.py), and whether, how
and by what (tracker.py). It imports neither torch nor Hydra, since analysis/ reads it,
too."""
