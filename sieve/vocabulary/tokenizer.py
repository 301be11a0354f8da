"""A tokenizer of transformers with fewer tokens, saved and loaded like any other."""

import json
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from sieve.vocabulary.tokenizer_json import Json, cut, vocabulary

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# Files that transformers would read in place of tokenizer.json, or beside it.
OTHERS = ("vocab.json", "merges.txt", "added_tokens.json", "*.model")


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerBase, used: Collection[int], least: int = 0
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """A tokenizer without most tokens that are not used, and the old id of each new id.

    Special tokens with a role, such as the end token, and tokens that a chat template names stay.

    Args:
        used: ids of tokens that stay.
        least: number of tokens that stay at least; the most common ones fill it.

    Raises:
        ValueError: the tokenizer is of a kind that cannot be cut exactly.
    """
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"vocabulary=task cannot cut {name}: it has no tokenizer.json, which the package "
            "`tokenizers` reads; set vocabulary=none."
        )
    with TemporaryDirectory() as folder:
        path = Path(folder)
        tokenizer.save_pretrained(path)
        content = json.loads((path / FILE).read_text(encoding="utf-8"))
        try:
            content, stays = cut(content, used, _named(tokenizer, content), least)
        except ValueError as error:
            raise ValueError(str(error).replace("this tokenizer", name)) from None
        _write(path, content)
        smaller = type(tokenizer).from_pretrained(path)
    smaller.name_or_path = tokenizer.name_or_path
    if smaller.get_vocab() != vocabulary(content):
        raise ValueError(
            f"vocabulary=task cannot cut {name}: it adds tokens to its tokenizer.json; set "
            "vocabulary=none."
        )
    return smaller, stays


def _named(tokenizer: PreTrainedTokenizerBase, content: Json) -> set[str]:
    """Special tokens with a role, and added tokens that the chat template contains."""
    template = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else "".join(template.values())
    added = [token["content"] for token in content["added_tokens"]]
    roles = [str(token) for token in tokenizer.special_tokens_map.values()]
    return {*roles, *(token for token in added if token in text)}


def _write(folder: Path, content: Json) -> None:
    """Write a cut tokenizer.json, and take the old ids from the files beside it."""
    (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for pattern in OTHERS:
        for file in folder.glob(pattern):
            file.unlink()
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)  # tokenizer.json has the added tokens too.
    if extra := settings.get("extra_special_tokens"):
        tokens = {token["content"] for token in content["added_tokens"]}
        settings["extra_special_tokens"] = _present(extra, tokens)
    (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _present(extra: list[str] | dict[str, str], tokens: set[str]) -> list[str] | dict[str, str]:
    """The further special tokens that the tokenizer has."""
    if isinstance(extra, dict):
        return {role: token for role, token in extra.items() if token in tokens}
    return [token for token in extra if token in tokens]
