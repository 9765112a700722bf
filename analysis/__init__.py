"""Reading the ledger: the paper's tables and figures beside ours. Imports no torch."""
