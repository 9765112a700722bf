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
measured_ids = set()
for measure in records.measures.values():
    measured_ids |= {run["id"] for run in measure["of"]}
every_run = runs(records)
measured_runs = every_run[every_run.id.isin(measured_ids)]
show(measured_runs[["id", "label", "model", "task", "seed", "rank", "value"]])
