"""Reading the ledger: the paper's tables and figures beside ours. Imports no torch."""

import runs  # noqa: F401 - which says first what is not installed
