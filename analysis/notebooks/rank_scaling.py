# %% [markdown]
# # Rank
# Figure 2: accuracy on RTE against trainable parameters, VeRA and LoRA over their ranks.

# %%
from analysis import figures
from analysis.notebooks import ledger, show

records = ledger()
show(figures.make("figure2", records), "figure 2 (VeRA and LoRA of several ranks on RTE)")

# %% [markdown]
# Figure 4: what a thousand trainable parameters gain over training the head alone.

# %%
show(figures.make("figure4", records), "figure 4 (gain for each 1,000 parameters)")

# %% [markdown]
# The demo's plot shows the same trade on the small model.

# %%
show(figures.make("demo", records), "the demo (make demo)")
