"""Values for the page's section on data: splits, repeated and shortened prompts, answers."""

from collections.abc import Mapping

from sieve.report.result import Comparison, Data, Result, build
from sieve.report.sentence import drop_interval
from sieve.report.templating import Table
from sieve.report.units import metric_name, metric_value, unit
from sieve.report.values import NOT_MEASURED, count, percent, points

ROLES = ("calibration", "selection", "test")


def splits(data: Data) -> Table:
    """Where the rows of each split came from, and how many are used."""
    roles = [role for role in ROLES if role in data.rows]
    roles += [role for role in data.rows if role not in ROLES]
    rows = [
        [role, _origin(data, role), count(data.read.get(role)), count(data.rows[role])]
        for role in roles
    ]
    return Table(["Split", "Taken from", "Rows read", "Rows used"], rows, text_columns=2)


def _origin(data: Data, role: str) -> str:
    carved = data.carved.get(role)
    if carved is None:
        return data.split_names.get(role, NOT_MEASURED)
    share = f", {percent(carved.fraction)}" if carved.fraction else ""
    return f"carved by hash from {carved.taken_from or 'calibration'}{share}"


def remarks(data: Data) -> list[str]:
    """A sentence for each count of repeated prompts and shortened fields."""
    repeated = [_repeated(pair, rows) for pair, rows in data.duplicates.items() if rows]
    shortened = [
        f"{count(rows)} rows had their {field} shortened"
        for field, rows in data.truncated.items()
        if rows
    ]
    context = f"{count(data.shortened)} prompts of a split were shortened to the model's context"
    return repeated + shortened + ([context] if data.shortened else [])


def _repeated(pair: str, rows: float) -> str:
    """What `tasks.splits` did with the rows whose prompts are in both splits of a pair."""
    role, _, other = pair.partition("/")
    if role != other:
        return f"{count(rows)} rows dropped from {role}: their prompts are also in {other}"
    if role == "calibration":
        return f"{count(rows)} rows dropped from {role}: they repeat a prompt"
    return f"{count(rows)} rows of {role} repeat a prompt and were kept, as published"


def answers(data: Data) -> Table:
    """The number of rows by right answer, a column per split."""
    roles = [role for role, counts in data.answers.items() if counts]
    names = dict.fromkeys(name for role in roles for name in data.answers[role])
    rows = [[name, *(count(data.answers[role].get(name, 0)) for role in roles)] for name in names]
    return Table(["Answer", *roles], rows)


def notes(result: Result) -> list[str]:
    """The used part of the vocabulary, and the experts that saw too few tokens."""
    sentences, vocabulary = [], result.data.vocabulary
    if vocabulary.size:
        sentences.append(
            f"The model's vocabulary has {count(vocabulary.size)} tokens. The answers use "
            f"{count(vocabulary.answers)} of them, the prompts of the selection and test rows "
            f"{count(vocabulary.prompts)}."
        )
    experts = result.calibration.experts
    if experts and experts.experts and not experts.few:
        sentences.append(f"Each of the {count(experts.experts)} experts saw enough tokens.")
    elif experts and experts.experts:
        fewest = ", ".join(f"{name} {count(tokens)}" for name, tokens in experts.fewest.items())
        sentences.append(
            f"{count(experts.few)} of {count(experts.experts)} experts saw fewer tokens than their "
            f"inputs have dimensions; {count(experts.unseen)} of them saw none. The fewest: "
            f"{fewest}."
        )
    return sentences


def other_tasks(also: Mapping[str, Comparison]) -> Table:
    """Both models on the test rows of other tasks."""
    rows = [
        [
            f"{name}, {metric_name(test)}",
            metric_value(test, test.baseline.accuracy),
            metric_value(test, test.pruned.accuracy),
            f"{points(test.drop.point)} {unit(test)} ({drop_interval(test.drop)})",
            count(test.examples),
        ]
        for name, test in also.items()
    ]
    return Table(["Task", "Dense", "Pruned", "Drop, 95 % interval", "Test rows"], rows)


def values(result: Result) -> dict[str, object]:
    """All values of the section; empty if the result says nothing about its data."""
    data = result.data
    if data == build(Data, {}):
        return {}
    return {
        "source": data.source,
        "splits": splits(data),
        "remarks": remarks(data),
        "answers": answers(data),
        "notes": notes(result),
        "other_tasks": other_tasks(result.also),
        "harness": data.harness,
    }
