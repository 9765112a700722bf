"""Writes a finished run's adapter for use elsewhere: folder.py its folder, with the model card by card.md."""
