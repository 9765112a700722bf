"""A run's record: one small JSON file, or published a line, from which tables, figures
and dashboards come.

schema.py: what a record holds, and its check; cell.py: which settings define a result,
what its number means, and a cell's seeds; ledger.py: how records are written and read.
No torch and no Hydra: analysis/ reads records through this package, which has all that
these modules define."""

from runs.record.cell import *
from runs.record.ledger import *
from runs.record.schema import *
from runs.record.text import *
