"""One run: its model, task and device (context), which build.py makes; the loop; and its record (result).

checkpoint.py saves and loads checkpoints, decode.py has the model write texts, features.py computes the
inputs of a head that trains alone, provenance.py records code, versions and machine.
"""
