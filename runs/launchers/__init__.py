"""How the runs of a command are started: one module for each kind of launcher.

contract.py says what a launcher is, registry.py has all of them by name. To add one you
write a module with its class, a line in the registry, and conf/launcher/NAME.yaml with
its settings, as for every choice of Hydra."""
