"""A vocabulary of 262,144 tokens cut to a task's: size, exactness, and time of a token.

    OMP_NUM_THREADS=1 SIEVE_SHARED=../shared python -m experiments.large_vocabulary  # two minutes

The tokenizer has Gemma's form (BPE with byte fallback, `▁` for spaces) and is trained on the texts
of all shared data sets; synthetic merges fill it up. The model has the shape of Gemma 3 270M and
random weights in bfloat16. The tokens of sst2's training rows stay, and the most common others, as
in a run. Texts are checked with both tokenizers, and tokens are generated one at a time with both
vocabularies in turn. Writes `large_vocabulary.json`.
"""

import json
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.running import FOLDER, SHARED
from sieve.config import VocabularyConfig
from sieve.evaluation.speed import describe_machine
from sieve.model.backbone import Backbone, cache_name
from sieve.vocabulary.backbone import CutBackbone, cut_backbone
from sieve.vocabulary.tokenizer_json import BYTES

SIZE = 262_144
SHAPE = {
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<unused{i}>" for i in range(99)))
BLOCKS = (0x20, 0xA0, 0x370, 0x400, 0x530, 0x590, 0x600, 0x900, 0xB80, 0xE00, 0xE80, 0x10A0)
BLOCKS += (0x1200, 0x13A0, 0x1780, 0x1800, 0x3040, 0x4E00, 0xAC00, 0x1F300)
Record = dict[str, Any]


def main() -> None:
    """Measure, and write the record."""
    torch.manual_seed(0)
    rows = strings(SHARED / "data" / "sst2" / "train.jsonl")
    texts = [text for file in sorted(SHARED.glob("data/*/train.jsonl")) for text in strings(file)]
    tokenizer = gemma_tokenizer(texts, SIZE)
    config = Gemma3TextConfig(vocab_size=SIZE, dtype="bfloat16", **SHAPE)
    record = {"machine": describe_machine(torch.device("cpu"))}
    record |= measure(Gemma3ForCausalLM(config).bfloat16().eval(), tokenizer, rows)
    (FOLDER / "large_vocabulary.json").write_text(json.dumps(record, indent=2) + "\n")


def strings(file: Path) -> list[str]:
    """All texts in the rows of a file."""
    rows = (json.loads(line) for line in file.open(encoding="utf-8"))
    return [value for row in rows for value in row.values() if isinstance(value, str)]


def gemma_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of Gemma's form with exactly `size` tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # Training needs words; afterwards merges may cross them, as in Gemma.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = [*SPECIAL, *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL]
    fill_up(content["model"], size)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    begin = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[begin])
    roles = {f"{role}_token": f"<{role}>" for role in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def fill_up(model: Record, size: int) -> None:
    """Add merges of two words until a BPE model has `size` tokens."""
    tokens = model["vocab"]
    words = ["".join(pair) for pair in model["merges"]]
    for left, right in product(words, words):
        if len(tokens) >= size:
            return
        if left + right not in tokens:
            tokens[left + right] = len(tokens)
            model["merges"].append([left, right])


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[str]
) -> Record:
    """The cut to the tokens of some rows: seconds, sizes, exactness and speed."""
    used = {token for ids in tokenizer(list(rows))["input_ids"] for token in ids}
    backbone = Backbone(model, tokenizer, "random", "random", model.dtype)
    dense, start = backbone.parameters, time.perf_counter()
    cut = cut_backbone(backbone, used, VocabularyConfig().fill)
    return {
        "cut_seconds": time.perf_counter() - start,
        "dense_tokens": len(tokenizer),
        "used_tokens": len(used),
        "tokens": len(cut.stays),
        "dense_parameters": dense,
        "parameters": backbone.parameters,
        "points_smaller": 100 * cut.vocabulary.removed / dense,
        "exact": exactness(cut, rows),
        "milliseconds_per_token": milliseconds_per_token(cut),
    }


def exactness(cut: CutBackbone, rows: Sequence[str], count: int = 10_000) -> Record:
    """How many rows have the same tokens, and how many other texts decode to themselves."""
    old, new = cut.original.tokenizer, cut.backbone.tokenizer
    ids = {index: place for place, index in enumerate(sorted(cut.stays))}
    same = 0
    for before, after in zip(
        old(list(rows))["input_ids"], new(list(rows))["input_ids"], strict=True
    ):
        same += [ids[index] for index in before] == after
    rng, texts = random.Random(0), list[str]()
    for _ in range(count):
        block = rng.choice(BLOCKS)
        text = rng.choice(rows)[: rng.randrange(40)]
        text += "".join(chr(block + rng.randrange(0x60)) for _ in range(rng.randrange(20)))
        texts.append(text.replace("▁", " "))
    decoded = new.batch_decode(new(texts, add_special_tokens=False)["input_ids"])
    equal = sum(one == other for one, other in zip(decoded, texts, strict=True))
    return {"rows": len(rows), "same_tokens": same, "texts": count, "decode_to_themselves": equal}


@torch.inference_mode()
def milliseconds_per_token(cut: CutBackbone, steps: int = 8, repeats: int = 5) -> Record:
    """The time of a generated token after a prompt of 32 tokens, one row, both in turn.

    With one thread the clock counts processor time, which excludes other processes.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    model, times = cut.backbone.model, dict[str, list[float]](whole=[], cut=[])
    cache = cache_name(model)

    def generate() -> float:
        out = model(input_ids=torch.arange(32)[None], use_cache=True)
        start = clock()
        for _ in range(steps):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, **{cache: getattr(out, cache)}, use_cache=True)
        return 1e3 * (clock() - start) / steps

    for _ in range(repeats):
        with cut.vocabulary.whole():
            times["whole"].append(generate())
        times["cut"].append(generate())
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["whole"], times["cut"], strict=True)]
    return medians | {"ratio": statistics.median(ratios), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
