# %% [markdown]
# # How much each layer is adapted
# Figure 3: the change of d by layer. Figure 5: how alike two methods' changes are. Figure 6: random matrices.
# %%
from analysis import figures, runs
from analysis.notebooks import ledger, show

records = ledger()
for name in ("figure3", "figure5", "figure6"):
    show(*figures.figures_of_ledger(name, records))
# %%
measured = {run["id"] for measure in records.measures.values() for run in measure["of"]}
found = runs(records)
show(
    found[found.id.isin(measured)][
        ["id", "label", "model", "task", "seed", "rank", "value"]
    ]
)
