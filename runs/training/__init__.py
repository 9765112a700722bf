"""One run: train.py does it; context.py is its task, model, device; loop.py trains;
result.py: its record.

checkpoint.py: the optimizer and the state, and both saved; files.py: an attempt's
files; decode.py: texts."""
