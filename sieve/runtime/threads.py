"""How long threads spin while they wait for one another; must be imported before torch.

GNU OpenMP spins for milliseconds. Some microseconds are as fast on a quiet machine, and twice as
fast beside other work, which a spinning thread keeps from finishing.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
