"""What only a GPU can show of this project, found in some ten minutes on one (see __main__.py)."""
