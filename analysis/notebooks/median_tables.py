# %% [markdown]
# # Tables of medians
# The paper's tables, our medians under the paper's numbers; then every cell, and its statistics.
# %%
from analysis import cells, runs, tables
from analysis.notebooks import ledger, show
from analysis.stats import statistics_tables

records = ledger()
for name in ("table2", "table3", "table4", "table5", "demo"):
    show(*tables.tables_of_ledger(name, records))
# %%
every_cell = cells(runs(records))
columns = ["model", "task", "label", "parameters", "median", "spread", "n", "wanted"]
show(every_cell[columns])
# %%
show(*statistics_tables(runs(records)))
