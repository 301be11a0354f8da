"""A backbone is loaded completely, from safetensors alone, or refused in one sentence."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers
from models import FAMILIES, tiny_gemma3, tiny_gpt2, tiny_llama, tiny_odd, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from sieve.config import ModelConfig
from sieve.model.backbone import (
    Backbone,
    count_parameters,
    forward,
    load_backbone,
    place,
)
from sieve.model.checkpoint_files import find_model

WEIGHT = "model.layers.0.mlp.up_proj.weight"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def saved(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """A directory with a model and its tokenizer."""
    (model or tiny_llama()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(path: Path | str, **options) -> Backbone:
    return load_backbone(ModelConfig(path=str(path), **options), torch.device("cpu"))


def edit(folder: Path, **weights: torch.Tensor | None) -> None:
    """Replace `WEIGHT` in the file, or remove it."""
    file = folder / "model.safetensors"
    state = load_file(file) | weights
    remaining = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(remaining, file, metadata={"format": "pt"})


def to_pickle(folder: Path) -> None:
    """Leave the weights as pickle alone."""
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()


def hub_model(monkeypatch: pytest.MonkeyPatch, root: Path, name: str) -> Path:
    """The cache that a download of a Hub model leaves; returns its snapshot to fill."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    repository = root / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def refused(path: Path | str) -> str:
    """The one-sentence error for a path."""
    with pytest.raises(ValueError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_ready_to_read(family, tmp_path):
    model = FAMILIES[family]()
    backbone = load(saved(tmp_path / family, model))
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.parameters == count_parameters(model)
    assert backbone.name == family
    batch = {"input_ids": torch.arange(3, 11)[None], "attention_mask": torch.ones(1, 8).long()}
    torch.testing.assert_close(forward(backbone.model, batch, 2), forward(model, batch, 2))


@pytest.mark.parametrize("build", [tiny_llama, tiny_odd])
def test_forward_returns_the_last_logits_of_the_sequence(build):
    model, ids = build(), torch.arange(3, 11)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "row": torch.zeros(1)}
    whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    last = forward(model, batch, 2)
    assert last.shape == (1, 2, 384)
    torch.testing.assert_close(last, whole[:, -2:])


def test_the_head_reads_contiguous_memory():
    model, contiguous = tiny_llama(), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _m, args, _y: contiguous.append(args[0].is_contiguous()))
    ids = torch.arange(3, 19).view(2, 8)
    forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1)
    assert contiguous == [True]
    model(input_ids=ids, logits_to_keep=1)
    assert contiguous == [True, False], "the hook is gone after the pass"


def test_weights_stored_as_pickle_are_refused_before_they_are_opened(tmp_path):
    folder = saved(tmp_path / "model")
    to_pickle(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    message = refused(folder)
    assert "has no *.safetensors" in message and "save_pretrained" in message
    with pytest.raises(ValueError, match="has no"):
        find_model(str(folder))


def test_a_pickle_beside_safetensors_is_not_opened(tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    (folder / "training_args.bin").write_bytes(b"not even a pickle")
    assert load(folder).parameters == count_parameters(tiny_llama())


def test_a_safetensors_file_of_something_else_does_not_open_the_pickle(tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert "no file named model.safetensors" in refused(folder)


def test_a_hub_model_of_safetensors_is_loaded_from_its_download(tmp_path, monkeypatch):
    saved(hub_model(monkeypatch, tmp_path, "org/safe"))
    backbone = load("org/safe")
    assert backbone.name == "safe" and backbone.parameters == count_parameters(tiny_llama())


def test_each_revision_of_a_hub_model_has_its_own_fingerprint(tmp_path, monkeypatch):
    first = saved(hub_model(monkeypatch, tmp_path, "org/revised"))
    shutil.copytree(first, first.with_name("f" * 40))
    (first.parents[1] / "refs" / "later").write_text("f" * 40)
    assert load("org/revised").fingerprint == load("org/revised", revision=COMMIT).fingerprint
    later = load("org/revised", revision="later").fingerprint
    assert later == load("org/revised", revision="f" * 40).fingerprint
    assert later != load("org/revised").fingerprint


def test_a_name_without_an_owner_is_a_hub_name():
    assert find_model("gpt2") == "gpt2"


def test_a_hub_model_of_pickle_alone_is_refused(tmp_path, monkeypatch):
    snapshot = saved(hub_model(monkeypatch, tmp_path, "org/pickled"))
    to_pickle(snapshot)
    absent = snapshot.parent.parent / ".no_exist" / COMMIT  # Files that the Hub does not have.
    absent.mkdir(parents=True)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (absent / name).touch()
    # Online, transformers would have a public service convert it.
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr(transformers.modeling_utils, "is_offline_mode", lambda: False)
    monkeypatch.setattr(
        transformers.modeling_utils, "auto_conversion", lambda *_, **__: pytest.fail()
    )
    message = refused("org/pickled")
    assert message.startswith("the Hub model 'org/pickled' has no *.safetensors")
    assert AutoModelForCausalLM.from_pretrained("org/pickled") is not None  # The pickle was there.


def test_an_unreachable_hub_model_says_what_to_check(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refused("org/absent")
    assert "'org/absent' could not be loaded" in message
    assert "check model.path, or for a Hub model the network" in message


@pytest.mark.parametrize("path", ["no/such/place", "./a/b", "~/no_such_model"])
def test_a_path_that_does_not_exist_is_named(path):
    with pytest.raises(ValueError, match="there is no such directory or GGUF file; check the path"):
        find_model(path)


def test_a_file_is_refused_as_a_model_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").touch()
    with pytest.raises(ValueError, match="there is no such directory"):
        find_model("org/model")


def test_a_directory_without_a_configuration_is_refused(tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "config.json").unlink()
    assert f"{folder} has no config.json" in refused(folder)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["{", "{}", '{"model_type": "zork"}', '{"model_type": "vit"}'])
def test_a_configuration_of_no_causal_language_model_is_refused(config, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "config.json").write_text(config)
    said = refused(folder)
    assert said.startswith(("the configuration of", "the model of"))
    assert f"'{folder}' could not be loaded (" in said


def test_a_directory_without_a_tokenizer_says_so(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    assert "the tokenizer of" in refused(tmp_path / "model")


@pytest.mark.parametrize("size", [0, 1000, -1000])
def test_a_truncated_file_is_named_damaged(size, tmp_path):
    folder = saved(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"the weights of '{folder}' are damaged" in refused(folder)


@pytest.mark.parametrize("replacement", [None, torch.zeros(3, 3)])
def test_missing_or_misshapen_weights_are_named(replacement, tmp_path):
    folder = saved(tmp_path / "model")
    edit(folder, **{WEIGHT: replacement})
    assert f"the weights {WEIGHT} are missing from the checkpoint" in refused(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad, tmp_path):
    folder = saved(tmp_path / "model")
    weight = load_file(folder / "model.safetensors")[WEIGHT]
    weight[3, 5] = bad
    edit(folder, **{WEIGHT: weight})
    assert f"the weights {WEIGHT} are not finite" in refused(folder)


def test_a_copy_elsewhere_has_the_same_fingerprint(tmp_path):
    folder = saved(tmp_path / "model")
    shutil.copytree(folder, tmp_path / "other" / "name")
    (folder / "README.md").write_text("notes change nothing")
    (folder / "training_args.bin").write_bytes(b"nor does this")
    assert load(folder).fingerprint == load(tmp_path / "other" / "name").fingerprint


def test_the_fingerprint_changes_with_weights_configuration_and_tokenizer(tmp_path):
    folder = saved(tmp_path / "model")
    seen = [load(folder).fingerprint]
    weight = load_file(folder / "model.safetensors")[WEIGHT]
    weight[0, 0] += 2**-7
    edit(folder, **{WEIGHT: weight})
    seen.append(load(folder).fingerprint)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    seen.append(load(folder).fingerprint)
    tiny_tokenizer(padding_side="right").save_pretrained(folder)
    seen.append(load(folder).fingerprint)
    (folder / "special_tokens_map.json").write_text("{}")
    seen.append(load(folder).fingerprint)
    assert len(set(seen)) == len(seen)


def test_all_shards_of_a_checkpoint_are_loaded_and_fingerprinted(tmp_path):
    folder = tmp_path / "model"
    model = tiny_llama()
    model.save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1 and not (folder / "model.safetensors").exists()
    before = load(folder)
    assert before.parameters == count_parameters(model)
    state = load_file(shards[-1])
    name = next(iter(state))
    save_file(state | {name: state[name] + 0.5}, shards[-1], metadata={"format": "pt"})
    assert load(folder).fingerprint != before.fingerprint


def make_mpt() -> PreTrainedModel:
    return MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=1, max_seq_len=77))


def make_bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(hidden_size=32, n_head=4, n_layer=1, vocab_size=384))


@pytest.mark.parametrize(
    ("build", "length"),
    [(build, 128) for build in FAMILIES.values()]
    + [(make_mpt, 77), (make_bloom, None)]
    + [(lambda: tiny_gpt2(n_positions=64), 64)]
    + [(lambda: tiny_gemma3(max_position_embeddings=256), 256)],
)
def test_the_context_length_is_the_longest_input_in_tokens(build, length):
    backbone = Backbone(build(), tiny_tokenizer(), "tiny", "key", torch.float32)
    assert backbone.context_length == length


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "bfloat16"])
@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cpu_computes_in_float32_unless_it_multiplies_bfloat16(
    storage, fast, tmp_path, monkeypatch
):
    monkeypatch.setattr("sieve.model.backbone.cpu_has_bfloat16", lambda: fast)
    model = tiny_llama()
    backbone = load(saved(tmp_path / "model", tiny_llama().to(storage)))
    expected = torch.bfloat16 if fast and storage == torch.bfloat16 else torch.float32
    assert (backbone.storage_dtype, backbone.model.dtype) == (storage, expected)
    loaded = dict(backbone.model.named_parameters())
    # The tiny weights are exact in all three.
    assert all(torch.equal(loaded[name].float(), w) for name, w in model.named_parameters())


def test_the_model_computes_in_the_configured_dtype(tmp_path):
    folder = saved(tmp_path / "model")
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(folder, dtype="bfloat16").storage_dtype == torch.float32


def test_the_configured_attention_implementation_is_used(tmp_path):
    folder = saved(tmp_path / "model")
    loaded = load(folder, attn_implementation="eager")
    assert loaded.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "said",
    [
        "You are trying to access a gated repo.\nMake sure to have access to it at https://...",
        "owner/name is not a local folder and is not a valid model identifier\nIf this is private",
    ],
)
def test_a_gated_or_absent_hub_model_is_refused_in_one_sentence(said, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(said)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    message = refused("owner/name")
    assert said.split("\n")[0].rstrip(".") in message and "your access to it" in message


def test_rotary_frequencies_keep_their_precision_in_every_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny_llama()
        exact = {n: b.clone() for n, b in model.named_buffers() if "inv_freq" in n}
        place(model, torch.device("cpu"), dtype)
        assert exact and model.dtype == dtype
        for name, buffer in exact.items():
            assert torch.equal(model.get_buffer(name), buffer)
