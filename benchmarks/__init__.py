"""Measures speed and memory beside peft, transformers and TRL, and of commands. It is no
part of the product. The command is __main__.py."""
