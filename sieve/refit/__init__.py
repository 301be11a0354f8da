"""The chosen ranks, solved again on what the pruned model sees."""
