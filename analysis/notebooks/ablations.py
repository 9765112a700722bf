# %% [markdown]
# # Ablations
# Table 6: which vectors train, how the matrices are drawn, where d starts. Table 7: shared or own matrices.
# %%
from analysis import cells, runs, tables
from analysis.notebooks import ledger, show

records = ledger()
show(
    *tables.tables_of_ledger("table6", records),
    *tables.tables_of_ledger("table7", records),
)
# %% [markdown]
# Every variant of VeRA: medians over seeds.
# %%
vera_cells = cells(runs(records)).query("method == 'vera'")
medians = vera_cells.pivot_table(
    index="label", columns=["model", "task"], values="median"
)
show(medians.round(1))
