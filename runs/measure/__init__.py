"""The measurements of figures 3, 5 and 6. The command is __main__.py."""
