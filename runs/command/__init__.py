"""Command lines: one parser for all commands (parser.py), and errors of one line
(errors.py)."""
