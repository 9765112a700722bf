# %% [markdown]
# # Cost
# Time, memory and bytes of each cell: medians over seeds. Runs of one device may be compared.

# %%
from analysis import tables
from analysis.notebooks import ledger, show
from analysis.statistics import costs

records = ledger()
show([costs(records)] if records.records else [], "costs (no finished run)")

# %% [markdown]
# Table 12: instruction tuning, LoRA and VeRA of rank 64.

# %%
show(tables.make("table12", records), "table 12")

# %% [markdown]
# Table 1: what the trained weights take by formula.

# %%
show(tables.make("table1", records), "table 1")
