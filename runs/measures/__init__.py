"""The measures of `vera-bench measure`: of the adapters of finished runs (adapters.py),
and a fit that takes seconds (matrix_fit.py)."""
