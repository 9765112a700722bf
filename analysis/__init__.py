"""Tables, figures, statistics and reports from records.

from analysis import cells, runs

cells(runs())  # one row per cell, from outputs/ and the published records
"""

import runs as _runs  # isort: skip  # first: it says which packages are not installed

from analysis.frame import cells, runs

__all__ = ["cells", "runs"]
