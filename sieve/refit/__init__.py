"""Solve the factors of the chosen ranks again, on the inputs of the pruned model."""
