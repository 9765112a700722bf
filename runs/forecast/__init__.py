"""What runs that are left would cost. No torch, and nothing is run."""

from runs.forecast.cost import Left, estimate

__all__ = ["Left", "estimate"]
