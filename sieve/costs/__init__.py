"""What a run costs, before it runs.

`shape.py` describes a model in numbers and `lengths.py` a task, `probe.py` a device. `passes.py`,
`solving.py` and `searching.py` count operations, memory and evaluations; `stages.py` and
`training.py` put them together for each stage.
"""
