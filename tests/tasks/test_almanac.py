"""Almanac: the same rows everywhere, facts that can be counted, splits that share nothing."""

import json
import math
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from sieve.tasks.almanac import (
    BOOKS,
    DATASETS,
    DOMAINS,
    Fact,
    World,
    WorldSize,
    almanac_rows,
    build_world,
    knowledge_bits,
)
from sieve.tasks.almanac.phrasing import Book
from sieve.tasks.almanac.reading import TELLINGS, VALUES

SPLITS = ("calibration", "selection", "test")
SETS = [(domain, dataset) for domain in DOMAINS for dataset in DATASETS]
CLOSED = [(domain, dataset) for domain in BOOKS for dataset in DATASETS]
EMBEDDED = Path(__file__).resolve().parents[2] / "sieve" / "assets" / "embedded"


def prompts(rows: list[dict[str, object]]) -> set[str]:
    """What the model reads of each row."""
    keys = ("context", "question", "options", "text")
    return {json.dumps({k: r[k] for k in keys if k in r}) for r in rows}


def test_same_seeds_give_the_same_rows_on_every_platform() -> None:
    row = almanac_rows("medicine", "primary", "calibration", n_rows=1)[0]
    assert row == {
        "question": "Choose the organ attacked by Sagoritis.",
        "options": {"A": "stomach", "B": "skin", "C": "liver", "D": "lung"},
        "answer_idx": "C",
        "fact": "organ:Sagoritis",
    }


@pytest.mark.parametrize(("domain", "dataset"), SETS)
def test_another_seed_draws_other_rows_of_the_same_world(domain: str, dataset: str) -> None:
    first, again, other = (
        almanac_rows(domain, dataset, "test", seed=seed, n_rows=50) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_another_world_seed_gives_other_facts() -> None:
    facts = [{(f.subject, f.value) for f in build_world(s).facts["geography"]} for s in (0, 1)]
    assert len(facts[0] & facts[1]) <= 1


@pytest.mark.parametrize(("domain", "dataset"), SETS)
def test_splits_have_their_sizes_and_share_no_prompt_whatever_their_seeds(
    domain: str, dataset: str
) -> None:
    seen = {}
    for seed, split in enumerate(SPLITS):
        rows = almanac_rows(domain, dataset, split, seed=seed)
        seen[split] = prompts(rows)
        assert (
            len(rows)
            == len(seen[split])
            == {"calibration": 3000, "selection": 1000}.get(split, 1500)
        )
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


@pytest.mark.parametrize(("domain", "dataset"), [s for s in SETS if s[0] != "reviews"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_four_options_and_one_answer_in_balanced_places(
    domain: str, dataset: str, split: str
) -> None:
    rows = almanac_rows(domain, dataset, split, n_rows=800)
    for row in rows:
        options = row["options"]
        assert isinstance(options, dict)
        assert list(options) == ["A", "B", "C", "D"]
        assert len(set(options.values())) == 4
        assert row["answer_idx"] in options
        assert "{" not in str(row["question"])
    places = Counter(str(row["answer_idx"]) for row in rows)
    assert min(places.values()) > 150  # of 200


@pytest.mark.parametrize(("domain", "dataset"), CLOSED)
def test_closed_book_answers_are_the_facts_of_the_world(domain: str, dataset: str) -> None:
    world = build_world(0)
    known = {f"{f.relation}:{f.subject}": f for f in world.facts[domain]}
    rows = almanac_rows(domain, dataset, "test")
    for row in rows:
        fact = known[str(row["fact"])]
        options = row["options"]
        assert isinstance(options, dict)
        assert options[row["answer_idx"]] == fact.value
        assert fact.subject in str(row["question"])
        assert set(options.values()) <= {*fact.candidates, fact.confusable}
    assert {row["fact"] for row in rows} == set(known)


def phrasings(book: Book, relation: str, split: str) -> set[str]:
    """All questions of a split about a relation."""
    frames = {*book["frames"]["calibration"], *book["frames"][split]}
    return {
        frame.replace("{c}", core) for frame in frames for core in book["cores"][relation][split]
    }


@pytest.mark.parametrize(("domain", "dataset"), CLOSED)
def test_no_held_out_phrasing_is_in_the_trained_ones(domain: str, dataset: str) -> None:
    book = BOOKS[domain][dataset]
    trained_frames = " | ".join(book["frames"]["calibration"])
    for role in ("selection", "test"):
        for frame in book["frames"][role]:
            assert frame not in trained_frames
    for relation, cores in book["cores"].items():
        trained = " | ".join(phrasings(book, relation, "calibration"))
        for core in (*cores["selection"], *cores["test"]):
            assert core not in trained
        assert not phrasings(book, relation, "selection") & phrasings(book, relation, "test")
        assert len(phrasings(book, relation, "calibration")) >= 6


@pytest.mark.parametrize("domain", BOOKS)
def test_held_out_phrasings_use_only_trained_words(domain: str) -> None:
    for book in BOOKS[domain].values():
        text = " ".join(
            phrase
            for relation in book["cores"]
            for phrase in phrasings(book, relation, "calibration")
        )
        for relation in book["cores"]:
            for split in ("selection", "test"):
                held_out = " ".join(phrasings(book, relation, split))
                assert set(re.findall(r"\w+", held_out)) <= set(re.findall(r"\w+", text))


def test_primary_and_alternate_phrase_differently_about_the_same_facts() -> None:
    for books in BOOKS.values():
        assert books["primary"]["cores"].keys() == books["alternate"]["cores"].keys()
        for relation in books["primary"]["cores"]:
            asked = [phrasings(book, relation, "calibration") for book in books.values()]
            assert not asked[0] & asked[1]


def test_knowledge_bits_of_a_tiny_world_agree_with_a_count_by_hand() -> None:
    facts = (
        Fact("organ", "x", "a", ("a", "b", "c", "d")),  # 2 bits
        Fact("organ", "y", "b", ("a", "b", "c", "d")),  # 2 bits
        Fact("class", "x", "u", ("u", "v")),  # 1 bit
    )
    world = World(0, WorldSize(), {"medicine": facts, "geography": ()})
    assert knowledge_bits("medicine", world) == 5
    assert knowledge_bits("geography", world) == 0
    assert knowledge_bits("reading", world) == knowledge_bits("reviews", world) == 0


def test_knowledge_bits_follow_from_the_numbers_of_entities() -> None:
    size = WorldSize(drugs=10, conditions=6, towns=8, countries=7, rivers=6)
    world = build_world(3, size)
    medicine = 10 * math.log2(6 * 5 * 8 * 12) + 6 * math.log2(8 * 8)
    geography = 8 * math.log2(12 * 11 * 7 * 6) + 7 * math.log2(8 * 8) + 6 * math.log2(6)
    assert knowledge_bits("medicine", world) == pytest.approx(medicine)
    assert knowledge_bits("geography", world) == pytest.approx(geography)


def test_a_larger_world_has_more_facts_and_more_bits() -> None:
    worlds = [build_world(0, WorldSize().scaled(factor)) for factor in (0.5, 1, 2, 4)]
    for domain in BOOKS:
        numbers = [len(world.facts[domain]) for world in worlds]
        bits = [knowledge_bits(domain, world) for world in worlds]
        assert all(b > 1.8 * a for a, b in pairwise(numbers))
        assert all(b > 1.8 * a for a, b in pairwise(bits))


def test_all_subjects_of_a_world_have_different_names() -> None:
    world = build_world(0, WorldSize().scaled(4))
    facts = [fact for facts in world.facts.values() for fact in facts]
    assert len({(f.relation, f.subject) for f in facts}) == len(facts)


KINDS_ASKED = {
    "thing": r"thing|have|buy|belongs|given",
    "animal": r"animal|feed|keep|follows|loved",
    "place": r"place|live|sleep|home|built",
    "friend": r"^Who|friend",
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_only_passage_and_question_together_give_the_answer(dataset: str) -> None:
    for row in almanac_rows("reading", dataset, "test", n_rows=400):
        options, told = row["options"], set(re.findall(r"\w+", str(row["context"])))
        assert isinstance(options, dict)
        answer = options[row["answer_idx"]]
        asked = [k for k, cue in KINDS_ASKED.items() if re.search(cue, str(row["question"]))]
        assert answer in VALUES[asked[-1]]
        # One wrong option is of the kind asked for, but not told; two are told, of other kinds.
        assert [o for o in options.values() if o in VALUES[asked[-1]] and o in told] == [answer]
        assert sum(o in told for o in options.values()) == 3
        assert sum(o in VALUES[asked[-1]] for o in options.values()) == 2


@pytest.mark.parametrize("dataset", DATASETS)
def test_reading_asks_held_out_questions_about_unseen_passages(dataset: str) -> None:
    for telling in TELLINGS[dataset].values():
        trained, selection, test = (set(telling["questions"][split]) for split in SPLITS)
        assert not test & trained and not selection & (trained | test)
    contexts = [
        {row["context"] for row in almanac_rows("reading", dataset, split, n_rows=500)}
        for split in SPLITS
    ]
    assert not contexts[0] & contexts[1] and not contexts[0] & contexts[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"domain": "law"}, "no domain 'law'"),
        ({"dataset": "third"}, "no dataset 'third'"),
        ({"split": "train"}, "no split 'train'"),
    ],
)
def test_an_unknown_name_is_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        almanac_rows(**({"domain": "medicine"} | override))


def test_a_world_too_small_for_distractors_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 6"):
        WorldSize(conditions=3)


def test_every_answer_is_one_token_of_the_embedded_model() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    answers = {"positive", "negative"}
    for domain, dataset in SETS:
        for row in almanac_rows(domain, dataset, "test", n_rows=300 if domain != "reviews" else 1):
            options = row.get("options", {})
            assert isinstance(options, dict)
            answers |= set(options.values())
    for world_facts in build_world(0).facts.values():
        answers |= {name for fact in world_facts for name in fact.candidates}
    for answer in answers:
        assert len(tokenizer.encode(f" {answer}", add_special_tokens=False)) == 1, answer
