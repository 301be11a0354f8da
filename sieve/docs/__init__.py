"""The documentation site: pages, and what `make docs` makes of the code to stand in them."""
