"""Captions by cached greedy search, beside transformers' ``generate`` with the same weights."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mmlib.captioning import CaptionDecoding, CaptionerConfig, LSTMCaptioner
from mmlib.captioning_transformer import TransformerCaptioner
from mmlib.decoding import greedy
from mmlib.positions import sinusoids

AREA = "Captions (chapter 8)"

PICTURES, REGIONS, LENGTH, DIM, LAYERS, VOCAB = 32, 49, 40, 256, 4, 2000
CONFIG = CaptionerConfig(
    VOCAB, region_dim=512, max_regions=REGIONS, dim=DIM, layers=LAYERS, max_length=LENGTH + 1
)


def as_gpt2(model):
    """A GPT-2 with cross-attention that computes what the captioner's decoder computes."""
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=LENGTH + 1,
            n_embd=DIM,
            n_layer=LAYERS,
            n_head=CONFIG.heads,
            activation_function="gelu",
            add_cross_attention=True,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    state = {
        "transformer.wte.weight": DIM**0.5 * model.word.weight,
        "transformer.wpe.weight": sinusoids(LENGTH + 1, DIM).float(),
        "lm_head.weight": model.word.weight,
        "transformer.ln_f.weight": model.decoder.norm.weight,
        "transformer.ln_f.bias": model.decoder.norm.bias,
    }
    for i, block in enumerate(model.decoder.blocks):
        attend, cross, name = block.self_attention, block.cross_attention, f"transformer.h.{i}."
        query, key_value = (
            [part[:DIM] for part in (cross.qkv_proj.weight, cross.qkv_proj.bias)],
            [part[DIM:] for part in (cross.qkv_proj.weight, cross.qkv_proj.bias)],
        )
        layers = {
            "ln_1": block.self_norm,
            "ln_cross_attn": block.cross_norm,
            "ln_2": block.mlp_norm,
        }
        linear = {
            "attn.c_attn": (attend.qkv_proj.weight, attend.qkv_proj.bias),
            "attn.c_proj": (attend.out_proj.weight, attend.out_proj.bias),
            "crossattention.q_attn": query,
            "crossattention.c_attn": key_value,
            "crossattention.c_proj": (cross.out_proj.weight, cross.out_proj.bias),
            "mlp.c_fc": (block.mlp[0].weight, block.mlp[0].bias),
            "mlp.c_proj": (block.mlp[3].weight, block.mlp[3].bias),
        }
        for key, norm in layers.items():
            state |= {f"{name}{key}.weight": norm.weight, f"{name}{key}.bias": norm.bias}
        for key, (weight, bias) in linear.items():  # GPT-2 keeps its matrices transposed
            state |= {f"{name}{key}.weight": weight.T, f"{name}{key}.bias": bias}
    missing, unknown = peer.load_state_dict(
        {key: value.detach().clone().contiguous() for key, value in state.items()}, strict=False
    )
    assert not unknown and all("bias" in name and "attn.bias" in name for name in missing)
    return peer.eval()


def test_cached_greedy_captions(side_by_side):
    torch.manual_seed(0)
    model, lstm = TransformerCaptioner(CONFIG).eval(), LSTMCaptioner(CONFIG).eval()
    peer = as_gpt2(model)
    regions = torch.randn(PICTURES, REGIONS, 512)
    with torch.no_grad():
        memory = model.begin(regions).memory
    limits = {"begin": 1, "end": 2, "max_length": LENGTH, "min_length": LENGTH - 1}

    def ours():
        return greedy(CaptionDecoding(model, regions), **limits).tokens[:, 0]

    def theirs():
        start = torch.ones(PICTURES, 1, dtype=torch.long)
        made = peer.generate(
            start,
            encoder_hidden_states=memory,
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH - 1,
            do_sample=False,
        )
        return made[:, 1:]

    assert torch.equal(ours()[:, : LENGTH - 1], theirs()[:, : LENGTH - 1])
    table = side_by_side(
        f"captions of {PICTURES} pictures, {LENGTH} tokens, {LAYERS} layers of width {DIM}",
        {
            "transformers (generate)": theirs,
            "mmlib Transformer": ours,
            "mmlib LSTM": lambda: greedy(CaptionDecoding(lstm, regions), **limits),
        },
        rounds=3,  # a call takes about a second
    )
    table.as_fast("mmlib Transformer", "transformers (generate)")
