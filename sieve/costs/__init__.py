"""What a run costs, before it runs.

`shape.py` describes a model in numbers, `lengths.py` a task and `probe.py` a device. `plan.py`
holds them together, and `stages.py` and `training.py` add up each stage.
"""
