# %% [markdown]
# # Tables of medians
# Each of the paper's tables with our numbers under the paper's: medians over seeds, +- sample standard deviation. Then the
# statistics that the paper does not print: intervals, best against last epoch, paper against unbiased selection, and VeRA
# against each other method.

# %%
from analysis.notebooks import ledger, made, show
from analysis.tables import TABLES
from analysis.verdicts import statistics_tables

records = ledger()

# %%
for name in ("table2", "table3", "table4", "table5", "demo"):
    show(made(TABLES, name, records) if name != "demo" else TABLES[name](records, "paper", None), name)

# %% [markdown]
# ## The same by unbiased selection
# The epoch is selected on one half of the dev rows and the other half is reported.

# %%
show(TABLES["table2"](records, "unbiased", None), "table2")

# %% [markdown]
# ## Statistics

# %%
show(statistics_tables(records), "statistics (no finished run)")
