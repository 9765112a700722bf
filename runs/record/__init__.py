"""A run's record: one small JSON file, from which tables, figures and dashboards are made.

schema.py: what a record holds, and its check; cell.py: which settings define a result, and the row of a table
that a run belongs to; metric.py: what its number means, the epoch that a protocol chooses, a cell's seeds;
files.py writes records, ledger.py reads them. No torch and no Hydra: analysis/ reads records through this
package, which has all that these modules define.
"""

from runs.record.cell import *
from runs.record.files import *
from runs.record.ledger import *
from runs.record.metric import *
from runs.record.schema import *
from runs.record.text import *
