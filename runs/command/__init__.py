"""Command lines: one parser for all commands (parser.py), the records that they name
(records.py), errors of one line (errors.py), and what those advise (advice.py)."""
