"""What a run is: its settings (definition.py), its method (methods.py), the functions of
its reward (reward_functions.py), its id (identity.py), and the code, versions and
machine that it is done with (provenance.py)."""
