"""DALL·E's Transformer is GPT-2 over words and codes; the filters are transformers' own."""

import pytest
import torch
import transformers
from transformers.generation import (
    ClassifierFreeGuidanceLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmlib.dalle import Dalle, DalleConfig
from mmlib.sampling import filter_logits, guide

WORDS, LENGTH, CODES, SIDE, DIM = 11, 5, 13, 3, 24


def gpt2_of(model):
    """transformers' GPT-2 with the same weights: one vocabulary, words first, then codes."""
    config = transformers.GPT2Config(
        vocab_size=WORDS + CODES,
        n_positions=LENGTH + SIDE**2,
        n_embd=DIM,
        n_layer=2,
        n_head=3,
        activation_function="gelu",
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    theirs.lm_head = torch.nn.Linear(DIM, WORDS + CODES).double()
    state = {
        "transformer.wte.weight": torch.cat([model.word.weight, model.code.weight]),
        "transformer.wpe.weight": torch.cat(
            [
                model.word_position.weight,
                (model.row.weight[:, None] + model.column.weight).flatten(0, 1),
            ]
        ),
        "transformer.ln_f.weight": model.decoder.norm.weight,
        "transformer.ln_f.bias": model.decoder.norm.bias,
        "lm_head.weight": torch.cat([model.word_head.weight, model.code_head.weight]),
        "lm_head.bias": torch.cat([model.word_head.bias, model.code_head.bias]),
    }
    for number, block in enumerate(model.decoder.blocks):
        parts = {
            "ln_1": block.self_norm,
            "attn.c_attn": block.self_attention.qkv_proj,
            "attn.c_proj": block.self_attention.out_proj,
            "ln_2": block.mlp_norm,
            "mlp.c_fc": block.mlp[0],
            "mlp.c_proj": block.mlp[3],
        }
        for name, layer in parts.items():
            # GPT-2 keeps its matrices the other way round.
            weight = layer.weight if name.startswith("ln") else layer.weight.T
            state[f"transformer.h.{number}.{name}.weight"] = weight
            state[f"transformer.h.{number}.{name}.bias"] = layer.bias
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    return theirs


def test_logits_loss_and_gradients_are_gpt2_s():
    torch.manual_seed(0)
    model = Dalle(DalleConfig(WORDS, LENGTH, CODES, SIDE, dim=DIM, heads=3, layers=2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype))
    theirs = gpt2_of(model)
    text = torch.randint(1, WORDS, (4, LENGTH))
    codes = torch.randint(CODES, (4, SIDE**2))
    ours, found = model(text, codes), theirs(torch.cat([text, codes + WORDS], dim=1)).logits
    torch.testing.assert_close(ours.text, found[:, : LENGTH - 1, :WORDS], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.codes, found[:, LENGTH - 1 : -1, WORDS:], atol=1e-10, rtol=0)
    (ours.codes.square().mean() + ours.text.square().mean()).backward()
    (
        found[:, LENGTH - 1 : -1, WORDS:].square().mean()
        + found[:, : LENGTH - 1, :WORDS].square().mean()
    ).backward()
    table = theirs.transformer.wte.weight.grad
    torch.testing.assert_close(model.word.weight.grad, table[:WORDS])
    torch.testing.assert_close(model.code.weight.grad, table[WORDS:])
    torch.testing.assert_close(
        model.decoder.blocks[0].mlp[0].weight.grad, theirs.transformer.h[0].mlp.c_fc.weight.grad.T
    )


@pytest.mark.parametrize("k", [1, 3, 40, 100])
@pytest.mark.parametrize("p", [0.2, 0.7, 0.95, 1.0])
def test_filters_are_transformers(k, p):
    logits = 2 * torch.randn(20, 50, dtype=torch.float64)
    expected = TopKLogitsWarper(k)(None, logits)
    if p < 1:
        expected = TopPLogitsWarper(p)(None, expected)
    found = filter_logits(logits, k, p)
    assert found.isneginf().equal(expected.isneginf())
    assert found.equal(expected)


def test_temperature_and_filters_in_transformers_order():
    logits = 2 * torch.randn(20, 50, dtype=torch.float64)
    expected = TopPLogitsWarper(0.8)(None, TemperatureLogitsWarper(0.6)(None, logits))
    assert filter_logits(logits / 0.6, top_p=0.8).equal(expected)


def test_guidance_is_transformers():
    both = torch.randn(8, 50, dtype=torch.float64)
    expected = ClassifierFreeGuidanceLogitsProcessor(3.5)(torch.zeros(4, 1), both)
    torch.testing.assert_close(guide(both[:4], both[4:], 3.5), expected)
