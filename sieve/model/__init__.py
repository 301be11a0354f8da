"""The model to be pruned: loading it, its blocks and its matrices."""
