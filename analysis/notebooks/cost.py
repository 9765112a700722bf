# %% [markdown]
# # Cost
# Seconds, memory and bytes of each cell: medians over seeds. Only runs of one device compare.
# %%
from analysis import cells, runs, tables
from analysis.notebooks import ledger, show

records = ledger()
costs = ["parameters", "seconds", "peak_memory_bytes", "adapter_bytes", "device"]
show(cells(runs(records))[["model", "task", "label", *costs]])
# %% [markdown]
# Table 12: instruction tuning. Table 1: what the trained weights take by formula.
# %%
show(
    *tables.tables_of_ledger("table12", records),
    *tables.tables_of_ledger("table1", records),
)
