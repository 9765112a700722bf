"""docs/results.md, docs/results/STUDY.md and docs/others.md from the published records:
findings.py tries the paper's findings and sums each over its tasks, pages.py fills the
templates."""
