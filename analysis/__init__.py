"""Tables, figures, statistics and reports from records.

from analysis import runs, cells
cells(runs())  # a row a cell, of outputs/ and the published records
"""

from analysis.frame import cells, runs

__all__ = ["cells", "runs"]
