# %% [markdown]
# # Ablations
# Table 6: which vectors train, how the matrices are drawn, and where d starts. Table 7: shared or own
# matrices. The paper prints means there.

# %%
from analysis import tables
from analysis.notebooks import ledger, show
from analysis.series import compare
from analysis.wanted import all_cells

records = ledger()
show(tables.make("table6", records), "table 6")

# %%
show(tables.make("table7", records), "table 7")

# %% [markdown]
# VeRA against each of its variants, paired by task and seed.

# %%
lines = compare({key: cell for key, cell in all_cells(records).items() if key[1].startswith("vera")})
for line in lines:
    print(
        f"{line.model} {line.task}: {line.labels[0]} against {line.labels[1]}: {line.difference:+.1f} over"
        f" {line.pairs} pairs"
    )
if not lines:
    print("note: the ledger holds no variant of VeRA beside VeRA")
