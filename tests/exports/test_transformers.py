"""transformers generates with, saves and places a factorized export after `import sieve`."""

import json
import sys

import pytest
import torch
import transformers
from exporting import greedy
from models import FAMILIES, tiny_tokenizer
from safetensors.torch import load_file
from sieved import logits, tokens
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

import sieve


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_generation_is_the_same_with_and_without_cache_and_padding(family, exported):
    model, folder = exported(family)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [tokens(1, length, seed=length) for length in (3, 11, 6)]
    width = max(prompt.shape[1] for prompt in prompts)
    ids, mask = torch.zeros(3, width).long(), torch.zeros(3, width).long()
    for row, prompt in enumerate(prompts):
        ids[row, width - prompt.shape[1] :] = prompt
        mask[row, width - prompt.shape[1] :] = 1
    single = torch.cat([greedy(loaded, prompt) for prompt in prompts])
    assert len(single.unique(dim=0)) == 3
    assert torch.equal(greedy(loaded, ids, mask), single)
    assert torch.equal(greedy(loaded, ids, mask, use_cache=False), single)
    assert torch.equal(greedy(model, ids, mask), single)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral"])
def test_a_loaded_export_is_saved_again_as_the_same_files(family, exported, tmp_path):
    _, folder = exported(family)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    state, again = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert state.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    for name in ("config.json", "modeling_sieve.py"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text()


def test_a_loaded_export_is_saved_in_several_files(exported, tmp_path):
    model, folder = exported("llama")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)


def test_the_configuration_alone_builds_the_same_shapes_on_the_meta_device(exported):
    _, folder = exported("phi3")
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert {parameter.device.type for parameter in shell.parameters()} == {"meta"}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in loaded.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in shell.state_dict().items()}


@pytest.mark.parametrize("device_map", ["auto", {"": "disk"}])
def test_a_device_map_loads_the_same_weights(device_map, exported, tmp_path):
    pytest.importorskip("accelerate")
    model, folder = exported("llama")
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path
    )
    torch.testing.assert_close(logits(loaded).cpu(), logits(model), rtol=0, atol=1e-5)


def test_a_text_generation_pipeline_writes_what_generate_writes(exported):
    model, folder = exported("llama")
    write = pipeline("text-generation", model=str(folder))
    tokenizer = tiny_tokenizer()
    options = {"max_new_tokens": 12, "do_sample": False}
    prompts = ["a good movie", "Review: bad\nAnswer:"]
    for prompt, written in zip(prompts, write(prompts, batch_size=2, **options), strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.numel() :]
        expected = prompt + tokenizer.decode(new, skip_special_tokens=True)
        assert written[0]["generated_text"] == expected


@pytest.mark.slow
def test_loading_after_import_sieve_gives_no_warning(exported, monkeypatch, tmp_path):
    _, folder = exported("gpt2")
    warnings = []
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and hasattr(module, "logger"):
            monkeypatch.setattr(module.logger, "warning", lambda *text, **_: warnings.append(text))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder)
    AutoConfig.from_pretrained(folder)
    assert warnings == []


def test_the_class_of_a_factorized_model_loads_an_export(exported):
    model, folder = exported("gpt2")
    loaded = sieve.factorized.modeling_sieve.SieveGPT2LMHeadModel.from_pretrained(folder)
    assert isinstance(loaded, transformers.GPT2LMHeadModel)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_a_configuration_without_its_entry_or_of_an_unknown_class_is_refused(exported, tmp_path):
    _, folder = exported("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    entry = config.pop("sieve")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no 'sieve' entry; export the model again"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    config["sieve"] = entry | {"architecture": "ZorkForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"transformers {transformers.__version__} has no Zork"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
