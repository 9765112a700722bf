"""One run: what it is done with (context), how that is built (build), the loop, and the record at its end
(result).

checkpoint.py keeps what a killed run goes on from, decode.py the texts that a model writes, features.py the
inputs of a head that trains alone, provenance.py what a run was done with.
"""
