"""docs/results.md, docs/results/STUDY.md and docs/others.md from the published records.

claims.py has the types; comparisons.py, measured.py and rates.py compare the paper's
claims on one task, findings.py over all tasks; study_rows.py compares the rows of a
study; numbers.py has the numbers in NOTES.md; pages.py fills the templates."""
