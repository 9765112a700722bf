# %% [markdown]
# # Rank
# Figure 2: the metric against trained parameters, by rank. Figure 4: the gain for each 1,000 parameters.
# %%
from analysis import cells, figures, runs
from analysis.notebooks import ledger, show

records = ledger()
show(
    *figures.figures_of_ledger("figure2", records),
    *figures.figures_of_ledger("figure4", records),
    *figures.figures_of_ledger("demo", records),
)
# %% [markdown]
# The same numbers, to be drawn in another way.
# %%
ranks = (
    cells(runs(records))
    .query("method in ['vera', 'lora']")
    .sort_values(["task", "method", "rank"])
)
show(ranks[["model", "task", "label", "rank", "alpha", "parameters", "median", "n"]])
