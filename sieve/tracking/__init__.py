"""`metrics.jsonl` and Weights & Biases."""
