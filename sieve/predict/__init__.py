"""The answers of a model to the rows of a file, written beside them."""
