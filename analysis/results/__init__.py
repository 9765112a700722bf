"""docs/results.md and docs/results/STUDY.md from the published records. findings.py holds the paper's
findings to them, sections.py writes the pages, readme.py the README's tables."""

from analysis.results.findings import claims
from analysis.results.sections import page

__all__ = ["claims", "page"]
