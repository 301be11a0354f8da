"""From a task's examples to batches of tokens."""
