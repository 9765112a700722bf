# %% [markdown]
# # Rank
# Figure 2: accuracy on RTE against trainable parameters, VeRA and LoRA over their ranks.

# %%
from analysis.figures import FIGURES
from analysis.notebooks import ledger, made, show

records = ledger()
show(made(FIGURES, "figure2", records), "figure 2 (VeRA and LoRA of several ranks on RTE)")

# %% [markdown]
# Figure 4: what a thousand trainable parameters gain over training the head alone.

# %%
show(made(FIGURES, "figure4", records), "figure 4 (gain for each 1,000 parameters)")

# %% [markdown]
# The demo's plot shows the same trade on the small model.

# %%
show(made(FIGURES, "demo", records), "the demo (make demo)")
