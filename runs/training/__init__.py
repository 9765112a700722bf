"""One run: train.py does it, in a process; context.py is its task, model and device; loop.py
trains; result.py makes the record.

checkpoint.py has the optimizer and the state, and saves both; files.py keeps an attempt's files; decode.py
has the model write texts.
"""
