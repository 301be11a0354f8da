"""Silence warnings that users of Sieve cannot act on. Import this before transformers.

transformers imports torchao if it is installed, and torchao warns about each of its kernels for
other hardware and about its patches of torch.
"""

import logging

for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
