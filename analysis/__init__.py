"""Reading the ledger: the paper's tables and figures beside ours. Imports no torch."""

import runs  # which says first what is not installed
