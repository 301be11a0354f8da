"""Every supported architecture can be fitted, pruned, trained, exported and loaded again."""

import copy
import logging
import re
from pathlib import Path

import pytest
import torch
from families import EVERY, KINDS, MIXTURES, MORE
from models import WithOwnExperts, tiny_mixtral, tiny_odd, tiny_tokenizer
from sieved import banked, logits, mixed, tokens, uniform
from transformers import AutoModelForCausalLM

import sieve
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.factorized.modeling_experts import Unfolded, fold, unfold
from sieve.model.matrices import dense_weight, find_matrices, unsupported
from sieve.projections.moments import Needs


@pytest.mark.parametrize("family", EVERY)
def test_every_matrix_of_a_block_is_found_under_its_kind_and_none_is_unsupported(family):
    model = EVERY[family]()
    before = logits(model)
    matrices = find_matrices(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    for layer in (0, 1):
        assert sorted(m.kind for m in matrices if m.layer == layer) == sorted(KINDS[family].split())
    assert not unsupported(model)
    listed = {id(model.get_submodule(m.name).weight) for m in matrices}
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    assert not listed & outside
    dense = listed | outside
    rest = [n for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in dense]
    allowed = re.compile(r"wpe|embed_positions|gate\.weight|router|shared_expert_gate|sinks")
    assert all(allowed.search(name) for name in rest)


@pytest.mark.parametrize("family", MORE)
def test_level_one_changes_nothing_and_level_half_equals_the_product_of_the_factors(
    family,
):
    model = MORE[family]().double()
    bank = banked(model, dtype=torch.float64)
    product = copy.deepcopy(model)
    dense_logits = logits(model)
    with Switch(model, bank).to(uniform(bank, 1.0)):
        assert torch.equal(logits(model), dense_logits)
    genome = uniform(bank, 0.5)
    for matrix, rank in bank.in_use(genome).items():
        factors = bank.factors[matrix.name]
        weight = dense_weight(product.get_submodule(matrix.name))
        weight.copy_(factors.u[:, :rank] @ factors.v[:rank])
    with Switch(model, bank).to(genome):
        pruned = logits(model)
    assert not torch.allclose(pruned, dense_logits, atol=1e-3)
    torch.testing.assert_close(pruned, logits(product), rtol=0, atol=1e-8)


# A dense export writes plain layers, so one family stands for all without experts.
EXPORTS = [(family, "factorized") for family in MORE] + [
    (family, "dense") for family in ("gpt_neo", *MIXTURES)
]


@pytest.mark.parametrize(("family", "form"), EXPORTS)
def test_an_export_loads_again_and_generates_the_same(family, form, tmp_path):
    model = MORE[family]()
    bank = banked(model)
    # Rank 0 leaves a bias, which not every dense architecture has a place for.
    sieve.apply(model, bank, mixed(bank) if form == "factorized" else uniform(bank, 0.5))
    folder = sieve.export(model, tiny_tokenizer(), tmp_path / form, form)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=3e-4)
    ids = tokens()[:1]
    written = loaded.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(written, model.generate(ids, max_new_tokens=4, do_sample=False))
    assert written.shape[1] == ids.shape[1] + 4


@pytest.mark.parametrize("family", EVERY)
def test_gradients_reach_every_factor_and_the_moments(family):
    model = EVERY[family]()
    batch = {"input_ids": tokens(4, 16, 1)}
    moments = calibrate(model, [batch], projection="loss_aware")
    matrices = find_matrices(model)
    reached = [m for m in matrices if moments.of(m).count]
    assert all(moments.of(m).gradient is not None for m in matrices)
    assert all(moments.of(m).gradient.power > 0 for m in reached)
    bank = sieve.fit(model, moments, "loss_aware", "pivoted")
    with Switch(model, bank).to(uniform(bank, 0.6)):
        for name in bank.names:
            model.get_submodule(name).requires_grad_(True)
        model(**batch).logits.square().sum().backward()
        for matrix in reached:
            layer = model.get_submodule(matrix.name)
            assert layer.factor_in.weight.grad.abs().sum() > 0, matrix.name
            assert layer.factor_out.weight.grad.abs().sum() > 0, matrix.name


@pytest.mark.parametrize("family", MIXTURES)
def test_unfolded_experts_compute_the_same_and_fold_back_to_the_stacked_ones(family):
    model = MORE[family]()
    native, before = copy.deepcopy(model), logits(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(unfold(model)) == 2 and unfold(model) == []
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    fold(model)
    assert type(model) is type(native)
    assert not any(isinstance(module, Unfolded) for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), before)


def test_unfolding_copies_no_weight():
    model = tiny_mixtral()
    experts = model.model.layers[0].mlp.experts
    start, size = experts.down_proj.data_ptr(), experts.down_proj[0].numel()
    unfold(model)
    step = size * experts.get_submodule("1").down_proj.weight.element_size()
    assert experts.get_submodule("1").down_proj.weight.data_ptr() == start + step


def read_by_experts(model, batch):
    """Inputs and output gradients of the layers of experts, without padding tokens."""
    seen, mask = {}, batch["attention_mask"].flatten().bool()
    handles = []
    for matrix in find_matrices(model):
        if matrix.expert:
            expert = model.get_submodule(matrix.expert)

            def hook(_module, args, y, name=matrix.name, expert=expert):
                real = mask[expert.tokens]
                seen[name] = [args[0].detach()[real], None]
                y.register_hook(lambda g: seen[name].__setitem__(1, g[real]))

            handles.append(model.get_submodule(matrix.name).register_forward_hook(hook))
    with torch.enable_grad():
        embedded = model.get_input_embeddings()(batch["input_ids"]).requires_grad_()
        out = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
        rows, columns = (batch["targets"] >= 0).nonzero(as_tuple=True)
        logprobs = out[rows, columns].log_softmax(-1)
        (-logprobs[range(len(rows)), batch["targets"][rows, columns]].sum()).backward()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("weighting", ["none", "gradient"])
def test_moments_of_an_expert_are_over_the_tokens_routed_to_it(weighting):
    model = tiny_mixtral()
    ids = tokens(6, 12, 4)
    mask = torch.ones_like(ids)
    mask[::2, :5] = 0
    targets = torch.full_like(ids, -100)
    targets[:, -3:] = ids[:, -3:]
    batch = {"input_ids": ids, "attention_mask": mask, "targets": targets}
    needs = Needs(input=True, gradient=True)
    moments = calibrate(model, [batch], needs=needs, answers="gold", weighting=weighting)
    expected = read_by_experts(model, batch)
    experts = [m for m in find_matrices(model) if m.expert]
    assert (
        len(experts) == 16 and sum(moments.of(m).count for m in experts) == 4 * int(mask.sum()) * 2
    )
    for matrix in experts:
        x, g = expected[matrix.name]
        moment = moments.of(matrix)
        assert moment.count == len(x) < int(mask.sum())
        weight = torch.ones(len(x)) if weighting == "none" else g.square().sum(1)
        second = (x * weight[:, None]).T @ x / weight.sum()
        torch.testing.assert_close(moment.second, second, rtol=1e-4, atol=1e-6)
        assert moment.gradient.power == pytest.approx(float(g.square().sum()) / 6, rel=1e-4)


@pytest.mark.parametrize("projection", ["output", "loss_aware", "whitened", "asvd", "affine"])
def test_an_expert_that_no_token_reached_is_fitted_and_rank_0_changes_nothing(projection):
    model = tiny_mixtral()
    ids = tokens(2, 8, 5)
    chosen: list[torch.Tensor] = []

    def away(_module, args):
        """Route the tokens of the last expert to the first."""
        chosen.append(args[1].masked_fill(args[1] == 3, 0))
        return args[0], chosen[-1], args[2]

    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(away)
    moments = calibrate(model, [{"input_ids": ids}], projection=projection)
    bank = sieve.fit(model, moments, projection)
    unseen = [m for m in bank.matrices if m.expert and m.expert.endswith(".3")]
    assert len(unseen) == 4 and all(moments.of(m).count == 0 for m in unseen)
    for matrix in unseen:
        factors = bank.factors[matrix.name]
        assert torch.isfinite(factors.u).all() and torch.isfinite(factors.v).all()
        assert float(factors.energy.sum()) == pytest.approx(0, abs=1e-6)
    before = logits(model, ids)
    with Switch(model, bank).set_ranks({m.name: 0 for m in unseen}):
        torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=0)


def test_a_layer_that_cannot_be_factorized_is_named_with_the_reason(caplog):
    model = tiny_odd()
    model.rungs[1] = WithOwnExperts(32)
    with caplog.at_level(logging.WARNING):
        assert len(find_matrices(model)) == 8
    assert "rungs.1.own" in caplog.text and "3,072 weights" in caplog.text
    assert list(unsupported(model)) == ["rungs.1.own"]
    assert "stacked" in unsupported(model)["rungs.1.own"]


def test_only_matrices_py_names_an_architecture():
    names = re.compile(
        r"llama\b(?!\.cpp|-gguf-split|-cli)|mistral|qwen|\bphi\b|\bphi3|gemma|olmo|falcon|gpt_?-?(2|j|neo)|neox|"
        r"\bopt\b|bloom|stablelm|granite|cohere|\bmpt\b|mixtral|(?<!j)bert\b",
        re.IGNORECASE,
    )
    for path in Path(sieve.__file__).parent.rglob("*.py"):
        # A GGUF file has llama.cpp's name of its architecture and of its tokenizer, and the recipe
        # of the embedded model makes a model of one architecture.
        exempt = path.name == "matrices.py" or path.name.startswith("gguf_")
        if not exempt and path.parent.name != "assets":
            assert not names.search(path.read_text()), path
