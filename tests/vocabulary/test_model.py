"""Models with some of their tokens: the same logits, other ids everywhere, and all tokens again."""

from pathlib import Path

import pytest
import torch
from families import EVERY
from models import FAMILIES, VOCAB_SIZE, tiny_gemma2, tiny_llama, tiny_llama_tied, tiny_phi3
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sieve.vocabulary.model import Vocabulary, least_tokens, named_ids, parameters_per_token

STAYS = [0, 1, 2, *range(5, VOCAB_SIZE, 7)]


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits


@pytest.mark.parametrize("name", sorted(EVERY))
def test_logits_of_the_tokens_that_stay_are_the_same(name: str) -> None:
    model = EVERY[name]()
    new = [3, 20, 7, 45]
    old = [STAYS[index] for index in new]
    expected, tokens = _logits(model, old), model.num_parameters()
    vocabulary = Vocabulary(model, STAYS)
    assert torch.allclose(_logits(model, new), expected[..., STAYS], atol=1e-5)
    assert model.num_parameters() == tokens - vocabulary.removed < tokens
    with vocabulary.whole():
        assert torch.equal(_logits(model, old), expected)
    assert _logits(model, new).shape[-1] == len(STAYS)
    vocabulary.restore()
    assert torch.equal(_logits(model, old), expected)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_saved_model_loads_with_fewer_tokens(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name]()
    Vocabulary(model, STAYS)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.get_text_config().vocab_size == len(STAYS)
    assert torch.allclose(_logits(loaded, [1, 9]), _logits(model, [1, 9]), atol=1e-6)


def test_tied_weights_stay_tied_and_others_do_not() -> None:
    tied, untied = tiny_llama_tied(), tiny_llama()
    vocabularies = [Vocabulary(model, STAYS) for model in (tied, untied)]
    for vocabulary in vocabularies:
        vocabulary.restore()
        with vocabulary.whole():
            pass
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert vocabularies[1].removed == 2 * vocabularies[0].removed


def test_a_share_of_the_parameters_is_a_number_of_tokens() -> None:
    for model, copies in ((tiny_llama_tied(), 1), (tiny_llama(), 2)):
        width = model.config.hidden_size
        assert parameters_per_token(model) == copies * width
        assert least_tokens(model, 0.1) == model.num_parameters() // (10 * copies * width)


def test_settings_have_the_new_ids() -> None:
    model = tiny_llama()
    last = STAYS[-1]
    model.config.eos_token_id = [2, last]
    model.config.image_token_index = -200
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = [2, last], last
    generation.suppress_tokens, generation.bad_words_ids = [last, 3], [[2, last], [3, last]]
    assert named_ids(model) == {0, 1, 2, last}
    vocabulary, new = Vocabulary(model, STAYS), len(STAYS) - 1
    assert model.config.eos_token_id == generation.eos_token_id == [2, new]
    assert model.config.image_token_index == -200
    assert generation.pad_token_id == new
    assert generation.suppress_tokens == [new] and generation.bad_words_ids == [[2, new]]
    assert model.config.vocab_size == model.vocab_size == len(STAYS)
    vocabulary.restore()
    assert model.config.eos_token_id == generation.eos_token_id == [2, last]
    assert model.config.vocab_size == model.model.embed_tokens.num_embeddings == VOCAB_SIZE


def test_ids_beyond_the_embedding_have_no_row() -> None:
    model = tiny_phi3()
    Vocabulary(model, [*STAYS, VOCAB_SIZE + 3])
    assert model.config.vocab_size == len(STAYS)


def test_a_model_whose_other_weights_depend_on_the_tokens_is_refused() -> None:
    model = tiny_gemma2()
    table = torch.randn(VOCAB_SIZE, 32)
    embed = model.model.embed_tokens
    embed.register_forward_hook(lambda _module, args, y: y + table[args[0]])
    with pytest.raises(ValueError, match="changes the logits of Gemma2ForCausalLM"):
        Vocabulary(model, STAYS)
    assert model.config.vocab_size == VOCAB_SIZE


def test_settings_of_an_unknown_form_are_refused() -> None:
    model = tiny_llama()
    model.generation_config.sequence_bias = {(5, 6): 1.0}
    with pytest.raises(ValueError, match="does not renumber sequence_bias"):
        Vocabulary(model, STAYS)
