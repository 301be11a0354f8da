"""The training text and the tokenizer of the embedded model.

The tokenizer is a byte-level BPE. Every word of Almanac, with its leading space, is one token.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sieve.conversion import CONF
from sieve.tasks.almanac import (
    BOOKS,
    DATASETS,
    DOMAINS,
    World,
    row_stream,
)

TASKS = CONF / "task"
SETS = tuple((domain, dataset) for domain in DOMAINS for dataset in DATASETS)
STATEMENT_SHARE = 0.08  # fraction of closed-book rows
MICRO_BATCH_TOKENS = 2048
PADDING, TEXT, ANSWER = 0, 1, 2
LABELS = ("negative", "positive")

Row = dict[str, object]
Rendered = tuple[str, tuple[str, ...], int]  # prompt, continuations, index of the answer


@dataclass
class Encoded:
    """A right-padded micro-batch (rows, length): token ids and their kinds."""

    tokens: torch.Tensor
    parts: torch.Tensor  # ANSWER, TEXT or PADDING


def task_name(domain: str, dataset: str) -> str:
    """The task of a data set, as `+task=` takes it."""
    return f"almanac_{domain}" + ("" if dataset == "primary" else f"_{dataset}")


def task_prompt(domain: str, dataset: str) -> str:
    """The prompt template of the task's own configuration file."""
    text = (TASKS / f"{task_name(domain, dataset)}.yaml").read_text(encoding="utf-8")
    return str(yaml.safe_load(text)["prompt"])


def render(template: str, row: Row) -> Rendered:
    """Prompt, continuations and answer of a row, as the task renders them."""
    if "text" in row:
        choices, answer = LABELS, int(str(row["label"]))
        prompt = template.format(text=row["text"])
    else:
        options = row["options"]
        assert isinstance(options, dict)
        choices = tuple(options.values())
        answer = list(options).index(row["answer_idx"])
        prompt = template.format(**(row | {"options": ", ".join(choices)}))
    return prompt, tuple(f" {choice}" for choice in choices), answer


def training_texts(world: World, domain: str, dataset: str, seed: int) -> Iterator[list[str]]:
    """Endless texts, each a list of pieces: text, answer, text, answer, ...

    They are prompts of the calibration split with answers, and facts as statements.
    """
    rng = random.Random(f"text:{domain}:{dataset}:{seed}")
    template = task_prompt(domain, dataset)
    for row in row_stream(domain, dataset, "calibration", seed + 1000, world):
        if domain in BOOKS and rng.random() < STATEMENT_SHARE:
            fact = rng.choice(world.facts[domain])
            cores = BOOKS[domain][dataset]["cores"][fact.relation]["calibration"]
            core = rng.choice(cores).replace("{s}", fact.subject)
            yield [f"{core[0].upper()}{core[1:]} is", f" {fact.value}", "."]
        else:
            prompt, choices, answer = render(template, row)
            yield [prompt, choices[answer]]


def build_tokenizer(world: World, vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the words of the training text.

    Raises:
        ValueError: the vocabulary is too small for every answer to be one token.
    """
    words = text_words(world, seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
    )
    tokenizer.train_from_iterator(sorted(words), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="right",
    )
    split = [w for w in sorted(words) if len(wrapped.encode(w, add_special_tokens=False)) > 1]
    if split:
        raise ValueError(
            f"a vocabulary of {vocabulary} splits {len(split)} words such as '{split[0]}', "
            "expected one token each. Set a larger vocabulary."
        )
    return wrapped


def text_words(world: World, seed: int) -> set[str]:
    """All words of a sample of the training text, and all names, with their leading space."""
    words: set[str] = set()
    for domain, dataset in SETS:
        stream = training_texts(world, domain, dataset, seed)
        for _ in range(6000):
            words.update(re.findall(r" ?\w+| ?[^\w\s]+", "".join(next(stream))))
    for facts in world.facts.values():
        words.update(f" {name}" for fact in facts for name in (fact.subject, *fact.candidates))
    return words


class Mixture(Protocol):
    """The settings that choose the training rows."""

    seed: int
    rows_per_step: int
    shares: dict[str, float]


class TrainingRows:
    """An endless iterator of steps; a step is a list of micro-batches of similar length."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, settings: Mixture) -> None:
        self._tokenizer = tokenizer
        self._streams = {s: training_texts(world, *s, settings.seed) for s in SETS}
        self._numbers = {
            (domain, dataset): max(1, round(settings.shares[domain] * settings.rows_per_step / 2))
            for domain, dataset in SETS
        }

    def __iter__(self) -> "TrainingRows":
        return self

    def __next__(self) -> list[Encoded]:
        texts = [next(self._streams[s]) for s, n in self._numbers.items() for _ in range(n)]
        rows = sorted((self._encode(pieces) for pieces in texts), key=lambda row: len(row[0]))
        batches: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if batches[-1] and (len(batches[-1]) + 1) * len(row[0]) > MICRO_BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)
        return [self._pad(batch) for batch in batches]

    def _encode(self, pieces: list[str]) -> tuple[list[int], list[int]]:
        ids, parts = [self._tokenizer.bos_token_id], [TEXT]
        encoded = self._tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False)
        for turn, piece in enumerate(encoded):
            ids += piece.ids
            parts += [ANSWER if turn % 2 else TEXT] * len(piece.ids)
        return [*ids, self._tokenizer.eos_token_id], [*parts, TEXT]

    def _pad(self, rows: list[tuple[list[int], list[int]]]) -> Encoded:
        width = max(len(ids) for ids, _ in rows)
        tokens = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        parts = torch.full((len(rows), width), PADDING)
        for i, (ids, marks) in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            parts[i, : len(ids)] = torch.tensor(marks)
        return Encoded(tokens, parts)
