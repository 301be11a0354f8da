"""The dashboard: all runs and sweeps under some folders in one page that needs no network.

Read with `python -m sieve.report runs/`. It reads `result.json` files and the settings beside them,
and nothing here imports torch.
"""

from sieve.report.dashboard.gather import Gathered, Run, gather
from sieve.report.dashboard.page import render_dashboard, write_dashboard

__all__ = ["Gathered", "Run", "gather", "render_dashboard", "write_dashboard"]
