"""What libraries say at import that nobody who uses Sieve can act on; must be imported before them.

transformers imports torchao wherever it is installed, and torchao warns of each of its kernels that
is for another machine, and of what it does to torch.
"""

import logging

for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
