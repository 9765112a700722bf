# %% [markdown]
# # How much each layer is adapted
# Figure 3: the length of the change of d, layer by layer, query and value.

# %%
from analysis.figures import FIGURES
from analysis.notebooks import ledger, made, show

records = ledger()
show(made(FIGURES, "figure3", records), "figure 3 (the change of d, measured from kept adapters)")

# %% [markdown]
# Figure 5: how alike the changes of two methods are. Figure 6: how well each fits random matrices.

# %%
show(made(FIGURES, "figure5", records), "figure 5 (similarity of the updates)")

# %%
show(made(FIGURES, "figure6", records), "figure 6 (random matrices)")
