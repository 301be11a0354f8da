"""What a run costs before it runs: arithmetic on shapes, no tensors.

`shape.py` a model in numbers, `passes.py` floating-point operations and bytes of passes through
it, `solving.py` those of the closed forms, `searching.py` how often genomes are evaluated,
`devices.py` seconds, `stages.py` all of it for each stage of a run.
"""
