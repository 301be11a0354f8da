"""The badge of a run: certified, likely or missed on test.

Certified: the selection rows certify the finished model at the run's confidence. Likely: only the
point estimate is within the tolerance. Missed on test: the drop on the test split is larger. The
test split decides nothing in a run; it only tells how the answer turned out.
"""

from dataclasses import dataclass
from typing import Literal

from sieve.report.genomes import LINES
from sieve.report.result import Result
from sieve.report.units import lost, word
from sieve.report.values import count, rounded_up
from sieve.tasks.metrics import AGREEMENT

Kind = Literal["certified", "likely", "missed", "unknown"]
_ROUNDING = 1e-9
_CHANCE = (
    "The size and the score of the pruned model say nothing. Check the prompt and the labels, "
    "{}or use another model."
)
_INVERTED = (
    "The size and the score of the pruned model say nothing. Check which answers the rows call "
    "right, such as the order of task.labels. If they are right, {}use another model."
)
_TUNE = "tune the model on the labels with python -m sieve.tune, "
_NOT_FINITE = (
    "The pruned model's numbers are not finite (NaN or infinity) on {} of {} test rows, which "
    "count as wrong. Run again with model.dtype=float32 or model.dtype=bfloat16."
)
_LUCK = "More selection rows make such a miss less likely."


@dataclass(frozen=True)
class Verdict:
    """What a run promises of its model: a kind, the words of the badge, and a sentence."""

    kind: Kind
    badge: str
    text: str


def verdict(result: Result) -> Verdict:
    """The verdict on a finished run."""
    if result.drop.point is None or result.tolerance is None:
        return Verdict("unknown", "not measured", "The drop on the test split was not measured.")
    if missed := _missed(result, result.drop.point - result.tolerance > _ROUNDING):
        return missed
    if loses_nothing(result):
        return Verdict("certified", "certified", "Nothing was pruned, so nothing is lost.")
    noun, limit = word(result), f"the tolerance of {lost(result, result.tolerance)}"
    if is_certified(result):
        return Verdict(
            "certified",
            "certified",
            f"With {_sure(result)} confidence, over draws of selection rows, the {noun} on fresh "
            f"rows is within {limit}.",
        )
    return Verdict("likely", "likely", _likely(result, f"the {noun} is within {limit}"))


def _missed(result: Result, beyond: bool) -> Verdict | None:
    """The verdict if the model does not do the task within the tolerance.

    beyond: whether the drop on the test split is larger than the tolerance.
    """
    if has_no_answer(result):
        tune = _TUNE if can_be_tuned(result) else ""
        if result.baseline.inverted:
            text = _INVERTED.format(f"{tune}or " if tune else "")
            return Verdict("missed", "worse than chance", text)
        return Verdict("missed", "no better than chance", _CHANCE.format(tune))
    if broken := result.pruned.not_finite:
        text = _NOT_FINITE.format(count(broken), count(result.examples))
        return Verdict("missed", "missed on test", text)
    feasible = loses_nothing(result) or _feasible_on_selection(result)
    limit = f"The tolerance of {lost(result, result.tolerance)}"
    if beyond:
        also = ", though it was on the selection split" if feasible else ""
        also = " or the selection split" if feasible is False else also
        text = f"{limit} was not met on the test split{also}. {_LUCK}"
        return Verdict("missed", "missed on test", text)
    if feasible is False:
        text = f"{limit} was not met on the selection split, though it was on the test split."
        return Verdict("missed", "missed on selection", f"{text} {_LUCK}")
    return None


def _likely(result: Result, within: str) -> str:
    """Why the verdict is `likely`, and what would certify the model."""
    high, tolerance = result.drop.high, result.tolerance or 0.0
    whole = high is not None and high <= tolerance + _ROUNDING
    interval = ", and so is its whole 95 % interval" if whole else ""
    return f"This is a point estimate: on the test split {within}{interval}. {_advice(result)}"


def _advice(result: Result) -> str:
    """Why nothing certifies the model, or what would."""
    if result.confidence is None:
        return "Set confidence=0.9 to require this of fresh rows with 90 % confidence."
    search, certificate = result.search, result.certificate
    if certificate is None and not search.confirmation and search.method not in (*LINES, ""):
        return (
            "The search chose among many genomes by all selection rows, so these rows cannot "
            "certify its choice; set search.confirmation=0.4, which keeps some of them back."
        )
    bound = None if certificate is None else certificate.upper
    sure, why = (certificate and certificate.confidence) or result.confidence, ""
    if sure > result.confidence + _ROUNDING:
        why = ", as is needed where the same rows test several models"
    reason = "" if bound is None else f": their bound is {lost(result, rounded_up(bound))}"
    return f"The selection rows do not certify it with {100 * sure:g} % confidence{why}{reason}."


def _sure(result: Result) -> str:
    return f"{100 * (result.confidence or 0):g} %"


def has_no_answer(result: Result) -> bool:
    """Whether the dense model does not do the task, so that no size of it is an answer."""
    return result.baseline.beats_chance is False


def can_be_tuned(result: Result) -> bool:
    """Whether `sieve.tune` may help: there are labels, and the model was not tuned on them."""
    return result.metric != AGREEMENT and result.rivals.tuned_dense is None


def is_certified(result: Result) -> bool:
    """Whether the selection rows certify the finished model at the run's confidence."""
    return result.certificate is not None and result.certificate.certified is True


def is_dense(result: Result) -> bool:
    """Whether every prunable matrix kept all its parameters."""
    kept = result.kept_fraction.prunable
    return kept is not None and kept >= 1 - _ROUNDING


def loses_nothing(result: Result) -> bool:
    """Whether the result is the dense model as it was, so that its drop is 0 for certain."""
    same = result.prompt is None and result.quantization is None and result.vocabulary is None
    return is_dense(result) and same and result.drop.point == 0


def _feasible_on_selection(result: Result) -> bool | None:
    """Whether the drop there is within the tolerance; None if the result does not say."""
    if (certificate := result.certificate) and certificate.drop is not None:
        return certificate.drop <= (result.tolerance or 0.0) + _ROUNDING
    return next((genome.feasible for genome in result.search.curve if genome.chosen), None)
