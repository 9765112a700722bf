"""Writes a finished run's adapter for use elsewhere: folder.py what lies in its folder, card.py the model
card from the record, push.py onto the hub."""
