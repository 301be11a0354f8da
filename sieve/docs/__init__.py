"""The documentation site: its pages, and the code that `make docs` uses to build them."""
