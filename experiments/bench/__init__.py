"""Speed and memory of Sieve's parts, and costs that a dry run forecasts beside measured ones.

    make bench                                     # minutes on one core; prints tables
    python -m experiments.bench --model my_model   # another model for the parts

Times are ratios of two kinds of work that take turns in one process.
"""
