"""The captions of figures whose words depend on what the figure shows."""

from sieve.report.early import BEYOND, LEFT, WITHIN, outcome
from sieve.report.genomes import genomes
from sieve.report.result import EvaluatedGenome, Result
from sieve.report.units import limit, word

_SPLIT = (
    "Every genome that the search evaluated, scored on the selection split. The answer above was "
    "measured once, on the test split."
)


def accuracy_caption(result: Result) -> str:
    """What the figure of accuracy against size shows, and what a reader might take for a fault."""
    points = genomes(result)
    early = {outcome(result, point) for point in points if point.whole is False}
    certain = "almost surely " if result.confidence is not None else ""
    sentences = [_SPLIT]
    if early & {WITHIN, BEYOND}:
        sentences.append(
            "A triangle at an edge is a genome whose scoring ended when it was "
            f"{certain}decided on which side of the tolerance it is: it shows the size, not "
            "the accuracy."
        )
    if LEFT in early:
        sentences.append(
            "A grey triangle is a genome that was discarded before all rows were scored."
        )
    if result.confidence is not None and any(_looks_within(result, point) for point in points):
        sentences.append(
            "A genome can be beyond the tolerance although its point is on the good side of the "
            f"line, because the upper bound of its {word(result)} at {100 * result.confidence:g} % "
            "confidence must be within the tolerance."
        )
    return " ".join(sentences)


def _looks_within(result: Result, point: EvaluatedGenome) -> bool:
    """Whether a genome that is beyond the tolerance by its bound is within it by its accuracy."""
    baseline, tolerance, accuracy = (
        result.search.baseline_accuracy,
        result.tolerance,
        point.accuracy,
    )
    if baseline is None or tolerance is None or accuracy is None:
        return False
    if point.whole is False or point.feasible is not False:
        return False
    worst = limit(result, baseline, tolerance)
    return accuracy <= worst if result.relative else accuracy >= worst
