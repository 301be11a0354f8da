"""An exported directory is the model in memory, for transformers with and without Sieve."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from models import (
    FAMILIES,
    tiny_gpt2,
    tiny_llama,
    tiny_llama_tied,
    tiny_mixtral,
    tiny_odd,
    tiny_qwen2,
    tiny_tokenizer,
)
from safetensors.torch import load_file
from sieved import banked, logits, mixed, tokens, uniform
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

import sieve
from sieve.factorized.modeling_layers import FactorizedLinear

# Loads directories where Sieve cannot be imported and leaves the logits beside each. Without the
# flag transformers asks a person; where nobody can answer that is a ValueError that names the flag.
STRANGER = """
import sys, warnings
sys.modules["sieve"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
ids = torch.load(sys.argv[1] + ".ids.pt")
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    torch.save(logits, folder + ".logits.pt")
    model.save_pretrained(folder + "_again")
    again = AutoModelForCausalLM.from_pretrained(folder + "_again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, logits)
AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
write = pipeline("text-generation", model=sys.argv[1], trust_remote_code=True)
text = write("a good movie", max_new_tokens=4, do_sample=False)[0]["generated_text"]
print("WROTE", text.startswith("a good movie"))
for flag in (False, None):
    try:
        AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=flag)
    except ValueError as error:
        print("REFUSED", error)
"""

# Loads a directory as one of any model.
PLAIN = """
import sys
sys.modules["sieve"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(input_ids=torch.load(sys.argv[1] + ".ids.pt")).logits
torch.save(logits, sys.argv[1] + ".logits.pt")
"""


def pruned(model, projection="output", **options):
    """The model, mixed levels, in place."""
    bank = banked(model, projection, **options)
    sieve.apply(model, bank, mixed(bank))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_loads_after_import_sieve_and_is_the_model_in_memory(family, tmp_path):
    model = pruned(FAMILIES[family](), "affine" if family == "gpt2" else "output")
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_export_loads_where_sieve_is_absent_and_is_refused_without_the_flag(tmp_path):
    expected, folders = {}, []
    for family, build in FAMILIES.items():
        model = pruned(build())
        folder = str(sieve.export(model, tiny_tokenizer(), tmp_path / family))
        torch.save(tokens(), folder + ".ids.pt")
        expected[folder] = logits(model)
        folders.append(folder)
    # What is saved after `import sieve` is for strangers too.
    resaved = str(tmp_path / "resaved")
    AutoModelForCausalLM.from_pretrained(folders[0]).save_pretrained(resaved)
    expected[resaved] = expected[folders[0]]
    folders.append(resaved)
    modules = str(tmp_path / "modules")
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, *folders],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        env=os.environ | {"HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("REFUSED") == 2
    assert done.stdout.count("Please pass the argument `trust_remote_code=True`") == 2
    assert "WROTE True" in done.stdout
    assert "newly initialized" not in done.stderr and "a model of type" not in done.stderr
    for folder, wanted in expected.items():
        torch.testing.assert_close(torch.load(folder + ".logits.pt"), wanted, rtol=0, atol=1e-5)
        again = Path(folder + "_again")
        assert (again / "modeling_sieve.py").is_file()
        loaded = AutoModelForCausalLM.from_pretrained(again)
        torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("projection", ["output", "affine"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_half_precision_storage_holds_what_memory_holds(build, projection, dtype, tmp_path):
    model = pruned(build(), projection, dtype=dtype)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", dtype=dtype)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_greedy_generation_is_that_of_memory_with_and_without_cache(build, tmp_path):
    model = pruned(build())
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones(2, 12).long()}
    wanted = model.generate(tokens(), **options)
    assert torch.equal(loaded.generate(tokens(), **options), wanted)
    assert torch.equal(loaded.generate(tokens(), use_cache=False, **options), wanted)


def test_tied_embeddings_stay_tied_and_are_stored_once(tmp_path):
    folder = sieve.export(pruned(tiny_llama_tied()), tiny_tokenizer(), tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_the_file_shrinks_by_the_parameters_removed(tmp_path):
    model = tiny_llama()
    dense = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense")
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    numbers = [
        sum(t.numel() for t in load_file(path / "model.safetensors").values())
        for path in (dense, folder)
    ]
    assert numbers[0] - numbers[1] == bank.size - bank.kept_parameters(mixed(bank))


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_dense_export_loads_as_the_native_class_and_leaves_the_factors_in_memory(build, tmp_path):
    model = build()
    bank = banked(model)
    sieve.apply(model, bank, uniform(bank, 0.6))
    wanted = logits(model)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", "dense")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is type(model)
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=1e-4)
    assert torch.equal(logits(model), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "phi3", "gemma2", "qwen2"])
def test_a_dense_export_is_a_plain_directory_of_its_architecture(family, tmp_path):
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path / "native")
    tiny_tokenizer().save_pretrained(tmp_path / "native")
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, uniform(bank, 0.6))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense")
    native, dense = (
        sorted(f.name for f in path.iterdir()) for path in (tmp_path / "native", folder)
    )
    assert dense == native and "tokenizer.json" in dense
    configs = [
        json.loads((path / "config.json").read_text()) for path in (tmp_path / "native", folder)
    ]
    assert configs[0] == configs[1] and configs[1]["architectures"] == [type(model).__name__]
    states = [load_file(path / "model.safetensors") for path in (tmp_path / "native", folder)]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_a_dense_export_loads_where_sieve_is_absent_without_a_flag(tmp_path):
    model = tiny_llama()
    bank = banked(model, storage="pivoted")
    sieve.apply(model, bank, uniform(bank, 0.6))
    folder = str(sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense"))
    torch.save(tokens(), folder + ".ids.pt")
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-P", "-c", PLAIN, folder], cwd=tmp_path, env=offline, check=True
    )
    found = torch.load(folder + ".logits.pt")
    torch.testing.assert_close(found, logits(model), rtol=0, atol=1e-4)


def test_a_dense_export_without_place_for_a_bias_says_what_to_use(tmp_path):
    model = pruned(tiny_llama(), "affine")
    before = logits(model)
    with pytest.raises(ValueError, match="needs a bias, .*; use export=factorized"):
        sieve.export(model, tiny_tokenizer(), tmp_path / "export", "dense")
    assert list(tmp_path.iterdir()) == []
    assert any(isinstance(module, FactorizedLinear) for module in model.modules())
    assert torch.equal(logits(model), before)


def test_an_older_directory_is_replaced_whole(tmp_path):
    folder = sieve.export(pruned(tiny_gpt2()), tiny_tokenizer(), tmp_path / "export")
    (folder / "stale.txt").write_text("old")
    sieve.export(pruned(tiny_llama()), tiny_tokenizer(), folder)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_the_tokenizer_travels_along(tmp_path):
    folder = sieve.export(pruned(tiny_llama()), tiny_tokenizer(), tmp_path / "export")
    text = "Review: a good movie\nSentiment: positive"
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded(text).input_ids == tiny_tokenizer()(text).input_ids


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got export format 'zip', expected one of fact"):
        sieve.export(tiny_llama(), tiny_tokenizer(), tmp_path / "export", "zip")


def test_factors_of_a_class_that_transformers_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got a OddForCausalLM.*use export=dense"):
        sieve.export(pruned(tiny_odd()), tiny_tokenizer(), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Builds and exports each family once: its pruned model in memory and its directory."""
    made = {}

    def get(family):
        if family not in made:
            model = pruned((FAMILIES | {"mixtral": tiny_mixtral})[family]())
            path = tmp_path_factory.mktemp("exports") / family
            made[family] = model, sieve.export(model, tiny_tokenizer(), path)
        return made[family]

    return get


def greedy(model, ids, mask=None, **options):
    """The twelve tokens that follow, none twice: tiny tied models repeat what they read last."""
    mask = torch.ones_like(ids) if mask is None else mask
    options |= {"no_repeat_ngram_size": 1, "suppress_tokens": [0, 1, 2]}
    written = model.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **options
    )
    return written[:, ids.shape[1] :]


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_generation_is_that_of_memory_cached_or_not_padded_or_not(family, exported):
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


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_a_loaded_export_saved_again_is_the_same_file(family, exported, tmp_path):
    model, folder = exported(family)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    state, again = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert state.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    for name in ("config.json", "modeling_sieve.py"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text()
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(twice), logits(model), rtol=0, atol=1e-5)


def test_a_loaded_export_saves_in_shards(exported, tmp_path):
    model, folder = exported("llama")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(sharded), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_a_loaded_export_can_be_exported_again_in_either_format(family, tmp_path):
    model = (FAMILIES | {"mixtral": tiny_mixtral})[family]()
    bank = banked(model)
    sieve.apply(model, bank, mixed(bank, (0.6, 1.0, 0.3, *[0.0] * (family == "gpt2"))))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for format in ("factorized", "dense"):
        path = sieve.export(loaded, tiny_tokenizer(), tmp_path / format, format)
        second = AutoModelForCausalLM.from_pretrained(path)
        torch.testing.assert_close(logits(second), logits(model), rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["model_type"] == model.config.model_type
    assert not {"sieve", "auto_map"} & config.keys()
    assert not (tmp_path / "dense" / "modeling_sieve.py").exists()


def tensor_bytes(folder):
    """Size of the weights in a file, its header aside."""
    file = folder / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little")
    return file.stat().st_size - 8 - header


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projection", ["output", "affine"])
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "phi3", "gpt2"])
def test_the_bytes_on_disk_shrink_by_what_was_removed(family, projection, dtype, tmp_path):
    model = FAMILIES[family]()
    dense = sieve.export(model, tiny_tokenizer(), tmp_path / "dense", "dense", dtype)
    bank = banked(model, projection)
    sieve.apply(model, bank, mixed(bank))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", dtype=dtype)
    removed = bank.size - bank.kept_parameters(mixed(bank))
    assert removed > 0
    assert tensor_bytes(dense) - tensor_bytes(folder) == removed * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("format", ["factorized", "dense"])
def test_the_dtype_on_disk_is_the_dtype_that_loads(format, dtype, tmp_path):
    model = pruned(tiny_gpt2(), dtype=dtype)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", format, dtype)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {dtype}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert model.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "qwen2"])
def test_with_every_matrix_gone_and_biases_fitted_the_export_still_runs(family, tmp_path):
    model = FAMILIES[family]()
    bank = banked(model, "affine")
    sieve.apply(model, bank, uniform(bank, 0.0))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.isfinite(logits(loaded)).all()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    assert torch.equal(greedy(loaded, tokens()), greedy(model, tokens()))


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_qwen2])
def test_affine_biases_are_exported_where_a_layer_had_none_or_its_own(build, tmp_path):
    model = build()
    bank = banked(model, "affine")
    sieve.apply(model, bank, uniform(bank, 0.6))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    state = load_file(folder / "model.safetensors")
    assert all(f"{name}.factor_out.bias" in state for name in bank.names)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_the_configuration_alone_builds_the_same_shapes_without_memory(exported):
    _, folder = exported("phi3")
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert {parameter.device.type for parameter in shell.parameters()} == {"meta"}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in loaded.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in shell.state_dict().items()}


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "disk"}])
def test_a_device_map_loads_the_same_weights(place, exported, tmp_path):
    pytest.importorskip("accelerate")
    model, folder = exported("llama")
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=place, offload_folder=tmp_path)
    torch.testing.assert_close(logits(loaded).cpu(), logits(model), rtol=0, atol=1e-5)


def test_a_text_generation_pipeline_writes_what_generate_writes(exported):
    model, folder = exported("llama")
    write = pipeline("text-generation", model=str(folder))
    tokenizer = tiny_tokenizer()
    options = {"max_new_tokens": 12, "do_sample": False}
    prompts = ["a good movie", "Review: bad\nAnswer:"]
    for prompt, made in zip(prompts, write(prompts, batch_size=2, **options), strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.numel() :]
        wanted = prompt + tokenizer.decode(new, skip_special_tokens=True)
        assert made[0]["generated_text"] == wanted


def test_the_configuration_points_at_the_file_that_travels_along(exported):
    _, folder = exported("gpt2")
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "modeling_sieve.SieveGPT2Config",
        "AutoModelForCausalLM": "modeling_sieve.SieveGPT2LMHeadModel",
    }
    source = Path(sieve.factorized.modeling_sieve.__file__).read_text()
    assert (folder / "modeling_sieve.py").read_text() == source


@pytest.mark.parametrize("format", ["factorized", "dense"])
def test_how_the_model_generates_travels_along(format, tmp_path):
    model = pruned(tiny_gpt2())
    model.generation_config.update(max_new_tokens=7, do_sample=True, top_k=3)
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export", format)
    loaded = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (loaded.max_new_tokens, loaded.do_sample, loaded.top_k) == (7, True, 3)


def test_factors_that_lie_in_one_buffer_are_each_written(tmp_path):
    model = tiny_llama()
    bank = banked(model)
    parts = [part for f in bank.factors.values() for part in (f.u, f.v)]
    buffer = torch.cat([part.flatten() for part in parts])
    views = iter(buffer.split([part.numel() for part in parts]))
    for name, factors in bank.factors.items():
        u, v = next(views).view_as(factors.u), next(views).view_as(factors.v)
        bank.factors[name] = dataclasses.replace(factors, u=u, v=v)
    sieve.apply(model, bank, mixed(bank))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    kept = {p.untyped_storage().nbytes() for p in loaded.parameters()}
    assert max(kept) < buffer.untyped_storage().nbytes()


def test_nothing_is_warned_of_on_loading_after_import_sieve(exported, monkeypatch, tmp_path):
    _, folder = exported("gpt2")
    said = []
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and hasattr(module, "logger"):
            monkeypatch.setattr(module.logger, "warning", lambda *text, **_: said.append(text))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder)
    AutoConfig.from_pretrained(folder)
    assert said == []


def test_the_class_itself_loads_its_export(exported):
    model, folder = exported("gpt2")
    loaded = sieve.factorized.modeling_sieve.SieveGPT2LMHeadModel.from_pretrained(folder)
    assert isinstance(loaded, transformers.GPT2LMHeadModel)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_an_export_without_its_entry_or_of_a_newer_transformers_says_so(exported, tmp_path):
    model, folder = exported("llama")
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


def refused(path):
    """The one sentence that a place for an export is refused with."""
    with pytest.raises(ValueError) as caught:
        sieve.export(tiny_llama(), tiny_tokenizer(), path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_a_directory_of_other_things_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    assert "contains thesis.txt and no config.json" in refused(tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    assert "contains thesis.txt and no config.json" in refused(".")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_file_in_the_way_is_named_and_stays(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "export", tmp_path / "file" / "a" / "b"):
        assert f"{tmp_path / 'file'} is a file, expected a directory" in refused(path)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(sieve.exports.export.__globals__["os"], "access", lambda *_: False)
    assert f"{tmp_path} is not writable" in refused(tmp_path / "a" / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_no_trace(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    folder = sieve.export(pruned(tiny_llama()), tiny_tokenizer(), tmp_path / "export")
    before = (folder / "model.safetensors").read_bytes()
    for format in ("factorized", "dense"):
        with pytest.raises(OSError, match="could not be written .No space left on device"):
            sieve.export(tiny_gpt2(), tokenizer, folder, format)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_empty_directory_a_new_path_and_one_at_home_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "deep" / "er", "~/small"):
        assert (sieve.export(tiny_llama(), tiny_tokenizer(), path) / "config.json").is_file()
    assert (tmp_path / "small" / "config.json").is_file()
