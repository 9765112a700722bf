"""The launchers that do runs on this machine, each in a process of its own."""

from typing import Literal

from runs.launchers.contract import OnThisMachine


class Serial(OnThisMachine):
    """One run after another."""

    name: Literal["serial"] = "serial"


class Local(OnThisMachine):
    """Runs at once, on all devices."""

    name: Literal["local"] = "local"

    @property
    def uses_all_devices(self) -> bool:
        """All of them."""
        return True
