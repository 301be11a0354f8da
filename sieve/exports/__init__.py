"""Exports in every format, how they are loaded again, and the task files beside them."""
