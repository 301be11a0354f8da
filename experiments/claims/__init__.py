"""One module per claim: its jobs, and the figures computed from their results.

Each module has `jobs()`, `summarize(results)` (figures with intervals), `tables(summary)`
(Markdown) and maybe `draw(summary, path)`. `experiments.reproduce` runs them.
"""
