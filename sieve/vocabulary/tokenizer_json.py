"""A `tokenizer.json` with fewer tokens that still encodes every text.

A text whose old tokens all stay gets the same tokens, with new ids:

- BPE applies the possible merge of lowest rank, again and again. Every token that it makes on the
  way is a part of a token of the result. So it suffices to keep the parts that BPE makes of each
  token that stays, and the merges whose parts and result stay. The old encoding's next merge is
  then always there, and it still has the lowest rank, because no merge is new.
- Unigram takes the split with the highest sum of scores. Without some tokens there are fewer
  splits, the old one among them. The score of an unknown character depends on the lowest score of
  all tokens, so one token with that score stays too.

Other texts get more tokens, and none becomes unknown, because all bytes or all characters stay.
Normalizer, splitting into words and decoder do not depend on the tokens.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

Json = dict[str, Any]
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # tokens of a byte fallback
PAIRS = ("BertProcessing", "RobertaProcessing")  # post-processors with two tokens
WITHOUT_IDS = ("ByteLevel",)


def cut(
    content: Json, used: Collection[int], named: Collection[str], least: int = 0
) -> tuple[Json, list[int]]:
    """The content of a tokenizer.json with fewer tokens, and the old id of each new id.

    The order of the tokens stays. Added tokens that are neither used nor named leave, such as
    `<unused99>`; a text that contains one then reads it as letters.

    Args:
        content: of the whole tokenizer.json.
        used: ids of tokens that stay.
        named: further tokens that stay, as texts; those that the tokenizer lacks do not count.
        least: number of tokens that stay at least; the most common ones fill it.

    Raises:
        ValueError: the tokenizer is of a kind that cannot be cut exactly.
    """
    model = _supported(content["model"])
    ids = vocabulary(content)
    wanted = set(used) | {ids[token] for token in _named(content, named) if token in ids}
    tokens = {token for token, index in ids.items() if index in wanted}
    needed = tokens | _parts(model, tokens) | _alphabet(content, ids)
    others = [token for token in _most_common_first(content) if token not in needed]
    extra = others[: max(0, least - len(needed))]
    needed |= {*extra, *_parts(model, extra)}
    stays = sorted(ids[token] for token in needed)
    new_ids = {old: new for new, old in enumerate(stays)}
    added = [token for token in content["added_tokens"] if token["id"] in new_ids]
    changed = content | {
        "added_tokens": [token | {"id": new_ids[token["id"]]} for token in added],
        "model": _cut_model(model, ids, new_ids),
        "post_processor": _renumbered(content.get("post_processor"), new_ids),
    }
    if padding := content.get("padding"):
        changed["padding"] = padding | {"pad_id": new_ids[padding["pad_id"]]}
    _check(changed, ids, new_ids)
    return changed, stays


def vocabulary(content: Json) -> dict[str, int]:
    """The id of every token, added ones included."""
    model = content["model"]
    tokens = model["vocab"]
    if model["type"] == "Unigram":
        tokens = {piece: index for index, (piece, _) in enumerate(tokens)}
    return tokens | {token["content"]: token["id"] for token in content["added_tokens"]}


def _supported(model: Json) -> Json:
    """The model of a tokenizer; ValueError if tokens cannot be taken from it exactly."""
    kind = model.get("type")
    reason = ""
    if kind not in ("BPE", "Unigram"):
        reason = f"it is a {kind} tokenizer, which reads words without a token as unknown"
    elif model.get("dropout"):
        reason = "it drops merges at random"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        reason = "it marks the tokens inside words or at their end"
    elif model.get("byte_fallback") and not set(BYTES) <= set(_texts(model)):
        reason = "it falls back on bytes and has no tokens for some of them"
    if reason:
        raise ValueError(
            f"vocabulary=task cannot cut this tokenizer exactly: {reason}; set vocabulary=none."
        )
    return model


def _texts(model: Json) -> Iterable[str]:
    if model["type"] == "Unigram":
        return [piece for piece, _ in model["vocab"]]
    return model["vocab"]


def _named(content: Json, named: Collection[str]) -> set[str]:
    """Tokens that the settings of the tokenizer name."""
    model, padding = content["model"], content.get("padding") or {}
    names = {*named, *_processor_tokens(content.get("post_processor"))}
    names |= {token for token in (model.get("unk_token"), padding.get("pad_token")) if token}
    if model.get("unk_id") is not None:
        names.add(model["vocab"][model["unk_id"]][0])
    return names


def _alphabet(content: Json, ids: Mapping[str, int]) -> set[str]:
    """Tokens that spell any text, and of a Unigram model one of the lowest score.

    Without a byte fallback these are all characters, and the tokens with characters that have no
    token themselves. A byte-level BPE writes each byte as a character.

    With a byte fallback, characters that the normalizer or the decoder exchanges stay, such as the
    `▁` for a space: spelled in bytes they would not be exchanged back.
    """
    model = content["model"]
    if model.get("byte_fallback"):
        parts = (content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder"))
        characters = {character for text in _strings(list(parts)) for character in text}
        tokens = {*BYTES, *(characters & ids.keys())}
    else:
        tokens = {token for token in ids if len(token) == 1 or not ids.keys() >= set(token)}
    if model["type"] == "Unigram":
        tokens.add(min(model["vocab"], key=lambda entry: entry[1])[0])
    return tokens


def _strings(value: object) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _most_common_first(content: Json) -> list[str]:
    """Tokens in the order of BPE's merges, which were learned from the most common pairs first.

    Tokens of a Unigram model are in the order of their scores. Added tokens are left out.
    """
    model = content["model"]
    if model["type"] == "Unigram":
        tokens = [piece for piece, _ in sorted(model["vocab"], key=lambda entry: -entry[1])]
    else:
        tokens = ["".join(pair) for pair in _merges(model)]
    added = {token["content"] for token in content["added_tokens"]}
    return [token for token in dict.fromkeys(tokens) if token not in added]


def _parts(model: Json, tokens: Collection[str]) -> set[str]:
    """The tokens that BPE makes on the way to `tokens`."""
    if model["type"] != "BPE":
        return set()
    ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
    parts = set[str]()
    for token in tokens:
        spelling, made = merged(token, ranks)
        if spelling == [token]:  # Added tokens are not made by merges.
            parts |= made
    return parts & model["vocab"].keys()


def merged(text: str, ranks: Mapping[tuple[str, str], int]) -> tuple[list[str], set[str]]:
    """The tokens that BPE makes of a word: the final ones, and all that it makes on the way.

    ranks: of each merge, by its two parts.
    """
    tokens = list(text)
    made = set(tokens)
    while True:
        pairs = enumerate(zip(tokens, tokens[1:], strict=False))
        rank, start = min(
            ((ranks[pair], start) for start, pair in pairs if pair in ranks), default=(None, 0)
        )
        if rank is None:
            return tokens, made
        tokens[start : start + 2] = [tokens[start] + tokens[start + 1]]
        made.add(tokens[start])


def _merges(model: Json) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _cut_model(model: Json, ids: Mapping[str, int], new_ids: Mapping[int, int]) -> Json:
    """The model of a tokenizer with the tokens of `new_ids`, which maps old ids to new ones."""
    if model["type"] == "Unigram":
        entries = [entry for index, entry in enumerate(model["vocab"]) if index in new_ids]
        unknown = model.get("unk_id")
        return model | {
            "vocab": entries,
            "unk_id": None if unknown is None else new_ids[unknown],
        }
    tokens = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
    merges = [
        [left, right]
        for left, right in _merges(model)
        if left in tokens and right in tokens and left + right in tokens
    ]
    return model | {"vocab": tokens, "merges": merges}


def _processors(processor: Json | None) -> list[Json]:
    """The post-processors inside a post-processor; itself if it is not a sequence."""
    if processor is None:
        return []
    return processor["processors"] if processor["type"] == "Sequence" else [processor]


def _processor_tokens(processor: Json | None) -> set[str]:
    """The tokens that a post-processor sets around texts; ValueError if its kind is unknown."""
    tokens = set[str]()
    for inner in _processors(processor):
        if inner["type"] == "TemplateProcessing":
            entries = inner["special_tokens"].values()
            tokens |= {token for entry in entries for token in entry["tokens"]}
        elif inner["type"] in PAIRS:
            tokens |= {inner["sep"][0], inner["cls"][0]}
        elif inner["type"] not in WITHOUT_IDS:
            raise ValueError(
                f"vocabulary=task does not know the ids in a post-processor {inner['type']}, which "
                "this tokenizer has; set vocabulary=none."
            )
    return tokens


def _renumbered(processor: Json | None, new_ids: Mapping[int, int]) -> Json | None:
    """A post-processor with new ids."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        inner = [_renumbered(one, new_ids) for one in processor["processors"]]
        return processor | {"processors": inner}
    if processor["type"] == "TemplateProcessing":
        entries = processor["special_tokens"].items()
        renumbered = {
            name: entry | {"ids": [new_ids[old] for old in entry["ids"]]} for name, entry in entries
        }
        return processor | {"special_tokens": renumbered}
    if processor["type"] in PAIRS:
        return processor | {k: [processor[k][0], new_ids[processor[k][1]]] for k in ("sep", "cls")}
    return processor


def _check(content: Json, ids: Mapping[str, int], new_ids: Mapping[int, int]) -> None:
    """ValueError if `tokenizers` gives the tokens of a cut tokenizer other ids."""
    expected = {token: new_ids[old] for token, old in ids.items() if old in new_ids}
    if Tokenizer.from_str(json.dumps(content)).get_vocab() != expected:
        raise ValueError(
            "vocabulary=task cannot cut this tokenizer exactly: its added tokens have lower ids "
            "than other tokens; set vocabulary=none."
        )
