"""docs/results.md and docs/results/STUDY.md from the published records. findings.py and of_figures.py compare
the paper's findings with them, sections.py writes the pages, readme.py the README's table."""

from analysis.results.findings import claims
from analysis.results.sections import merged, pages
