"""How the runs of a command are started: one module for each kind of launcher.

contract.py says what a launcher is, registry.py has all of them by name. A new one is a
module with its class and a line in the registry; conf/launcher/NAME.yaml lists its
settings, as for every choice of Hydra."""
