"""docs/results.md and docs/results/STUDY.md from the published records. of_rows.py and of_figures.py try
the paper's findings on them, sections.py fills the templates of the pages and of the README's blocks."""

from analysis.results.of_rows import findings
from analysis.results.sections import pages
