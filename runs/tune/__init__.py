"""Tunes learning rates: cells.py has the grids, study.py searches, report.py prints the results."""
