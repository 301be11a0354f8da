"""Speed and memory of Sieve's parts, and costs that a dry run forecasts beside measured ones.

    make bench                                     # minutes on one core; prints the tables
    make bench ARGS=--adopt                        # also writes results/bench.json and the page
    python -m experiments.bench --model my_model   # another model for the parts

Times are ratios of two kinds of work that take turns in one process.
"""
