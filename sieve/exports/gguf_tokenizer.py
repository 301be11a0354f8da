"""A tokenizer of transformers in the metadata of a GGUF file, if llama.cpp splits texts as it does.

llama.cpp has two tokenizers that Sieve writes for: "gpt2", a BPE of bytes whose pre-tokenizer has a
name, and "llama", the BPE of SentencePiece, which merges the pair whose token has the best score.
The parts of `tokenizer.json` decide, not a checksum, so a cut vocabulary has the name of the whole.
"""

import json
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from sieve.vocabulary.tokenizer_json import BYTES, Json

ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The expression that splits texts, and whether merges are ignored -> name of the pre-tokenizer.
SPLITS = {
    (ENGLISH + r"\p{N}{1,3}" + REST, True): "llama-bpe",
    (ENGLISH + r"\p{N}{1,3}" + REST, False): "smaug-bpe",
    (ENGLISH + r"\p{N}" + REST, False): "qwen2",
}
SPACE = "▁"  # of SentencePiece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of GGUF
ROLES = ("bos", "eos", "unk", "pad")
SAMPLE = "a"


@dataclass(frozen=True)
class GgufTokenizer:
    """The metadata of a tokenizer, by the names that GGUF has for them."""

    model: str  # "gpt2" or "llama"
    pre: str  # "default" for "llama"
    tokens: list[str]
    types: list[int]
    merges: list[str]  # of "gpt2"
    scores: list[float]  # of "llama"
    ids: dict[str, int]  # role, such as "bos" -> id
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None


def gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> GgufTokenizer:
    """The metadata of a tokenizer.

    Args:
        size: number of the model's embeddings; those without a token get unused ones.

    Raises:
        ValueError: llama.cpp would give some texts other tokens, or there are more tokens than
            embeddings.
    """
    try:
        return _converted(tokenizer, size)
    except _Unfit as reason:
        raise ValueError(
            f"export=gguf cannot write {type(tokenizer).__name__}: {reason}, so llama.cpp would "
            "give texts other tokens; use export=factorized."
        ) from None


class _Unfit(Exception):
    """Why llama.cpp has no tokenizer like this one."""


def _converted(tokenizer: PreTrainedTokenizerBase, size: int | None) -> GgufTokenizer:
    if not tokenizer.is_fast:
        raise _Unfit("it has no tokenizer.json")
    content: Json = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise _Unfit(f"it is a {model['type']} tokenizer, not a BPE")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _Unfit("it marks the tokens inside words or at their end")
    tokens, types = _tokens(content, size)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    begins, ends = _surroundings(tokenizer)
    flags = {"add_bos_token": begins, "add_eos_token": ends}
    scores, merges, pre = list[float](), list[str](), "default"
    if model.get("byte_fallback"):
        flags["add_space_prefix"] = _adds_space(content)
        scores = _scores(content, pairs, tokens)
    else:
        pre, merges = _pre_tokenizer(content), [" ".join(pair) for pair in pairs]
    template = tokenizer.chat_template
    return GgufTokenizer(
        model="llama" if model.get("byte_fallback") else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=merges,
        scores=scores,
        ids={
            role: int(index)
            for role in ROLES
            if (index := getattr(tokenizer, f"{role}_token_id")) is not None
        },
        flags=flags,
        chat_template=template.get("default") if isinstance(template, dict) else template,
    )


def _tokens(content: Json, size: int | None) -> tuple[list[str], list[int]]:
    """Every token by its id, and its type."""
    model, added = content["model"], {token["id"]: token for token in content["added_tokens"]}
    texts = {index: token for token, index in model["vocab"].items()}
    texts |= {index: token["content"] for index, token in added.items()}
    count = max(texts) + 1
    if size is not None and count > size:
        raise _Unfit(f"it has {count:,} tokens and the model {size:,} embeddings")
    types = list[int]()
    for index in range(size or count):
        if index not in texts:
            texts[index] = f"[unused {index}]"
            types.append(UNUSED)
        elif texts[index] == model.get("unk_token"):
            types.append(UNKNOWN)
        elif index in added:
            types.append(CONTROL if added[index]["special"] else USER_DEFINED)
        elif model.get("byte_fallback") and texts[index] in BYTES:
            types.append(BYTE)
        else:
            types.append(NORMAL)
        if types[-1] == USER_DEFINED and model.get("byte_fallback"):
            texts[index] = texts[index].replace(SPACE, " ")  # llama.cpp finds them in plain text.
    return [texts[index] for index in range(size or count)], types


def _surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether texts begin with the begin token, and end with the end token."""
    plain = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(SAMPLE)["input_ids"]
    begins = len(whole) > len(plain) and whole[0] == tokenizer.bos_token_id
    ends = len(whole) > len(plain) and whole[-1] == tokenizer.eos_token_id
    first, last = [tokenizer.bos_token_id] * begins, [tokenizer.eos_token_id] * ends
    if whole != [*first, *plain, *last]:
        raise _Unfit("it sets other tokens around texts than one to begin and one to end them")
    return begins, ends


def _steps(part: Json | None, inside: str) -> list[Json]:
    """The steps of a normalizer or pre-tokenizer."""
    if part is None:
        return []
    return list(part[inside]) if part["type"] == "Sequence" else [part]


def _pre_tokenizer(content: Json) -> str:
    """The name that llama.cpp has for how a BPE of bytes splits texts into words."""
    model: Json = content["model"]
    others = [s for s in _steps(content.get("normalizer"), "normalizers") if s["type"] != "NFC"]
    if others:
        raise _Unfit(f"it changes texts by {others[0]['type']}")
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        raise _Unfit("it is not a BPE of bytes that leaves texts as they are")
    *before, last = steps
    ignores, name = bool(model.get("ignore_merges")), None
    if last.get("use_regex", True) and not ignores:
        digits = len(before) == 1 and before[0] == {"type": "Digits", "individual_digits": True}
        name = "smollm" if digits else None if before else "gpt-2"
    elif [step["type"] for step in before] == ["Split"]:
        [split] = before
        plain = split["behavior"] == "Isolated" and not split["invert"]
        name = SPLITS.get((split["pattern"].get("Regex", ""), ignores)) if plain else None
    if name is None:
        raise _Unfit("llama.cpp has no name, that Sieve knows, for how it splits texts into words")
    return name


def _adds_space(content: Json) -> bool:
    """Whether a SentencePiece tokenizer sets a space before texts."""
    steps = _steps(content.get("normalizer"), "normalizers")
    adds = {"type": "Prepend", "prepend": SPACE} in steps
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE} in steps
    pre = content.get("pre_tokenizer")
    if pre is not None and pre["type"] == "Metaspace" and not pre["split"]:
        adds, marks = adds or pre["prepend_scheme"] != "never", True
    elif pre is not None:
        raise _Unfit(f"it splits texts by {pre['type']}")
    if not marks or len(steps) != adds * (pre is None) + (pre is None):
        raise _Unfit("it changes texts otherwise than by marking spaces")
    return adds


def _scores(content: Json, pairs: list[list[str]], tokens: list[str]) -> list[float]:
    """A score of each token, by which SentencePiece makes the same merges; others get 0."""
    ranks = dict[str, int]()  # of a token: its place among the tokens that merges make
    results = ["".join(pair) for pair in pairs]
    for result in results:
        ranks.setdefault(result, len(ranks))
    order = [ranks[result] for result in results]
    vocabulary = content["model"]["vocab"].keys()
    added = {token["content"] for token in content["added_tokens"]}
    possible = {
        (token[:cut], token[cut:])
        for token in vocabulary - added
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    }
    if order != sorted(order) or possible != {(left, right) for left, right in pairs}:
        raise _Unfit("its merges do not follow from scores, as in SentencePiece")
    return [-float(ranks[token] + 1) if token in ranks else 0.0 for token in tokens]
