# %% [markdown]
# # Tables of medians
# Each of the paper's tables with our numbers under the paper's: medians over seeds, +- sample standard
# deviation. Then the statistics that the paper does not print: intervals, best against last epoch, what
# choosing the epoch adds, and VeRA against each other method.

# %%
from analysis import tables
from analysis.notebooks import ledger, show
from analysis.statistics import statistics_tables

records = ledger()

# %%
for name in ("table2", "table3", "table4", "table5", "demo"):
    show(tables.make(name, records), name)

# %% [markdown]
# ## The same, cross-fitted
# The epoch is chosen on one half of the dev rows and reported on the other, both ways.

# %%
show(tables.make("table2", records, "crossfit"), "table2")

# %% [markdown]
# ## Statistics

# %%
show(statistics_tables(records), "statistics (no finished run)")
