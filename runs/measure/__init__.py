"""Measures what figures 3, 5 and 6 show. See __main__.py, which is the command."""
