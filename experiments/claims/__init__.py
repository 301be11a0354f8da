"""One module per claim: which runs it takes, and what their results say of it.

Each has `jobs()`, the runs; `summarize(results)`, the figures with their intervals;
`tables(summary)`, Markdown; `draw(summary, path)`, a figure, where there is one.
`experiments.reproduce` does the rest.
"""
