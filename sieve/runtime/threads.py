"""Limit how long OpenMP threads spin while they wait. Import this before torch.

GNU OpenMP spins for milliseconds. Spinning for microseconds is as fast on an idle machine and twice
as fast on a busy one, where spinning threads delay other work.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
