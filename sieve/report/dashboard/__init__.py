"""The dashboard: all runs and sweeps under some folders in one page that works offline.

`python -m sieve.report runs/` writes it from `result.json` files and the settings beside them,
without importing torch.
"""

from sieve.report.dashboard.gather import Run, gather
from sieve.report.dashboard.page import render_dashboard, write_dashboard

__all__ = ["Run", "gather", "render_dashboard", "write_dashboard"]
