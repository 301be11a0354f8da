"""Tables: ratios of the parts, speed by level, and forecasts of a dry run."""

from collections.abc import Mapping
from typing import Any

from experiments.figures import markdown, spread

RATIOS = {  # name: (what, target)
    "moments": ("moments of `output` over a forward pass", "1.6"),
    "loss_aware_moments": ("moments of `loss_aware` over a forward pass", "4"),
    "fit": ("fitting a block per thread over matrices one by one, two threads", "0.67"),
    "switch": ("changing a genome over scoring it on 1,000 rows", "0.02"),
    "shared_blocks": ("genomes that differ in one matrix: from there on over whole", "0.67"),
    "shared_prefix": ("rows of which half is the same: with a shared prefix over without", "1"),
    "pivoted_0.75_128": ("pivoted over plain factors, 128 tokens a row, level 0.75", "1"),
    "pivoted_0.2_128": ("pivoted over plain factors, 128 tokens a row, level 0.2", "1"),
    "pivoted_0.75_1": ("pivoted over plain factors, one token a row, level 0.75", "1"),
    "pivoted_0.2_1": ("pivoted over plain factors, one token a row, level 0.2", "1"),
}


def tables(summary: Mapping[str, Any]) -> list[str]:
    """Three tables; brackets have the least and the largest of the repeats."""
    rows = [
        [label, spread(summary["ratios"][name], 3), target]
        for name, (label, target) in RATIOS.items()
    ]
    return [
        markdown(["what", "ratio", "target: at most"], rows),
        _speed(summary["speed"]),
        _forecast(summary["forecast"]),
    ]


def _speed(models: Mapping[str, Any]) -> str:
    rows = [
        [name, level, spread(entry["prefill"], 2), spread(entry["decode"], 2)]
        for name, levels in models.items()
        for level, entry in levels.items()
    ]
    return markdown(["model", "level", "prefill, times dense", "decode, times dense"], rows)


def _forecast(shapes: Mapping[str, Any]) -> str:
    rows, stages = [], next(iter(shapes.values()))["stages"]
    for name, entry in shapes.items():
        cells = [_pair(stage, "seconds", 1) for stage in entry["stages"].values()]
        label = f"{name}, {entry['prunable'] / 1e6:.0f}M"
        rows.append([label, *cells, _pair(entry, "peak_mib", 0)])
    head = ["shape, measured / forecast", *(f"{stage}, s" for stage in stages), "peak, MiB"]
    return markdown(head, rows)


def _pair(entry: Mapping[str, Any], key: str, digits: int) -> str:
    return f"{entry[key]['value']:,.{digits}f} / {entry[f'forecast_{key}']:,.{digits}f}"
