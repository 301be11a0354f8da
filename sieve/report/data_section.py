"""The report's section on the data: split sizes, carved splits, duplicates, cut prompts, answers.

It reads the task's report; keys it does not know are still listed, never dropped.
"""

from collections.abc import Mapping
from typing import Any

from sieve.report import html
from sieve.report.html import text
from sieve.report.units import metric_name, metric_value, unit
from sieve.report.values import NOT_MEASURED, count, number, percent, points

MODELS = ("baseline", "pruned")
ROLES = ("calibration", "selection", "test")
_KNOWN = {"source", "read", "split_names", "rows", "carved", "duplicates", "truncated", "answers",
          "vocabulary"}  # fmt: skip


def data(result: Mapping[str, Any]) -> str:
    """The whole section; "" when the result says nothing of its data."""
    report = result.get("data")
    if not isinstance(report, Mapping) or not report:
        return ""
    source = report.get("source")
    return html.section(
        "data",
        "Data",
        html.paragraph(f"Rows from {source}.") if source else "",
        _splits(report),
        _remarks(report),
        _answers(report),
        _vocabulary(report),
        _experts(result),
        _also(result),
        _others(report),
    )


def _splits(report: Mapping[str, Any]) -> str:
    rows, read, names = (_mapping(report, key) for key in ("rows", "read", "split_names"))
    carved = _mapping(report, "carved")
    roles = [role for role in ROLES if role in rows] + [role for role in rows if role not in ROLES]
    if not roles:
        return ""
    lines = []
    for role in roles:
        origin = text(names.get(role, NOT_MEASURED))
        if role in carved:
            origin = _carved_origin(carved[role])
        lines.append([text(role), origin, count(read.get(role)), count(rows[role])])
    heads = ["Split", "Taken from", "Rows read", "Rows used"]
    return html.table(heads, lines, "The three splits share no prompt", text_columns=2)


def _carved_origin(carved: Any) -> str:
    if not isinstance(carved, Mapping):
        return text("carved by hash")
    share = f", {percent(carved['fraction'])}" if number(carved.get("fraction")) else ""
    return text(f"carved by hash from {carved.get('from', 'calibration')}{share}")


def _remarks(report: Mapping[str, Any]) -> str:
    """One list item per count of repeated prompts and of shortened fields."""
    remarks = [_duplicate(pair, n) for pair, n in _mapping(report, "duplicates").items() if n]
    remarks += [
        f"{count(n)} rows had their {field} shortened"
        for field, n in _mapping(report, "truncated").items()
        if n
    ]
    if not remarks:
        return html.paragraph("No prompt was repeated and none was shortened.")
    items = "\n".join(f"<li>{text(remark)}</li>" for remark in remarks)
    return f"<ul>\n{items}\n</ul>"


def _duplicate(pair: str, rows: Any) -> str:
    """What happened to the rows of one pair of roles, as `tasks.splits` does it."""
    role, _, other = pair.partition("/")
    if role != other:
        return f"{count(rows)} rows dropped from {role}: their prompts also stand in {other}"
    if role == "calibration":
        return f"{count(rows)} rows dropped from {role}: their prompts stand there already"
    return f"{count(rows)} rows of {role} repeat a prompt and were kept, as the set was published"


def _answers(report: Mapping[str, Any]) -> str:
    """How the right answers are distributed: answers as rows, splits as columns."""
    answers = _mapping(report, "answers")
    roles = [role for role in answers if isinstance(answers[role], Mapping)]
    names = list(dict.fromkeys(name for role in roles for name in answers[role]))
    if not names:
        return ""
    rows = [[text(name), *(count(answers[role].get(name, 0)) for role in roles)] for name in names]
    caption = "Rows by right answer"
    return html.table(["Answer", *roles], rows, caption)


def _vocabulary(report: Mapping[str, Any]) -> str:
    """How much of the model's vocabulary the task can reach."""
    found = _mapping(report, "vocabulary")
    if not number(found.get("size")):
        return ""
    return html.paragraph(
        f"Of the model's {count(found['size'])} tokens the answers take {count(found['answers'])}, "
        f"and the prompts of the selection and test rows {count(found['prompts'])}."
    )


def _experts(result: Mapping[str, Any]) -> str:
    """How many experts of a mixture saw too little of the task to be judged by it."""
    found = _mapping(_mapping(result, "calibration"), "experts")
    if not number(found.get("experts")):
        return ""
    if not found.get("few"):
        return html.paragraph(f"Each of {count(found['experts'])} experts saw tokens enough.")
    fewest = ", ".join(f"{name} {count(n)}" for name, n in _mapping(found, "fewest").items())
    return html.paragraph(
        f"{count(found['few'])} of {count(found['experts'])} experts saw fewer tokens than their "
        f"inputs have dimensions, {count(found.get('unseen'))} of them none; the fewest: {fewest}."
    )


def _also(result: Mapping[str, Any]) -> str:
    """Both models on the test rows of other tasks."""
    rows = []
    for name, found in _mapping(result, "also").items():
        drop = _mapping(found, "drop")
        low, high = points(drop.get("low")), points(drop.get("high"))
        values = [metric_value(found, _mapping(found, m).get("accuracy")) for m in MODELS]
        what = f"{points(drop.get('point'))} {unit(found)} ({low} to {high})"
        label = text(f"{name}, {metric_name(found)}")
        rows.append([label, *map(text, values), text(what), count(found.get("examples"))])
    if not rows:
        return ""
    heads = ["Task", "Dense", "Pruned", "Lost, 95 % interval", "Test rows"]
    return html.table(heads, rows, "The same models on the test rows of other tasks")


def _others(report: Mapping[str, Any]) -> str:
    pairs = [
        (str(key).replace("_", " "), text(value))
        for key, value in report.items()
        if key not in _KNOWN and value not in (None, {}, [])
    ]
    return html.definitions(pairs) if pairs else ""


def _mapping(report: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = report.get(key)
    return value if isinstance(value, Mapping) else {}
