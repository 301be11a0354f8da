"""Training of the factors after pruning."""
