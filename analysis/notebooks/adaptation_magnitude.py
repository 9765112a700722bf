# %% [markdown]
# # How much each layer is adapted
# Figure 3: the length of the change of d, layer by layer, query and value.

# %%
from analysis import figures
from analysis.notebooks import ledger, show

records = ledger()
show(figures.make("figure3", records), "figure 3 (the change of d, measured from kept adapters)")

# %% [markdown]
# Figure 5: how alike the changes of two methods are. Figure 6: how well each fits random matrices.

# %%
show(figures.make("figure5", records), "figure 5 (similarity of the updates)")

# %%
show(figures.make("figure6", records), "figure 6 (random matrices)")
