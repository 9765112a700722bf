"""Tunes learning rates: cells.py says what is searched, study.py searches, report.py says what came of it."""
