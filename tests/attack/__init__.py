"""A campaign of files, words and requests from strangers: see __main__.py."""
