"""One HTML page from the records. data.py has what it shows, sections.py its HTML, report.html its frame."""

from analysis.report.sections import page
