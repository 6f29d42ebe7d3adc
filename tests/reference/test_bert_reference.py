"""Text encoders are equal to transformers' and PyTorch's with copied weights."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig as TheirConfig
from transformers import BertForPreTraining, BertModel, CLIPTextConfig, CLIPTextModel

from mmlib.attention import padding_keep
from mmlib.encoders import pretrained
from mmlib.encoders.text import (
    Bert,
    BertConfig,
    TextRNN,
    TextRNNConfig,
    TextTransformer,
    embed_texts,
)
from mmlib.encoders.tokenizers import clip_tokenizer, wordpiece_tokenizer

SENTENCES = [
    "A large red circle above a small blue square.",
    "Hi!",
    "",
    "The committee, which had met for the third time that week, postponed its decision.",
    "une étoile jaune 在左边 😀",
    "Embeddings of unbelievably tokenisable words: antidisestablishmentarianism.",
]

close = dict(rtol=0, atol=1e-5)


def randomise(module, seed=3):
    """Random biases and norms too: zeros and ones would hide a missing one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.add_(noise * (0.02 if parameter.ndim == 2 else 0.2))
    return module.eval()


def small_bert(**changes):
    sizes = dict(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
        type_vocab_size=3,
    )
    config = TheirConfig(**{**sizes, **changes}, attn_implementation="eager")
    return randomise(BertModel(config).double())


def small_clip(**changes):
    sizes = dict(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
        eos_token_id=59,
    )
    # Its eager attention takes the softmax in float32 even of a float64 model.
    options = dict(attn_implementation="sdpa") | changes
    return randomise(CLIPTextModel(CLIPTextConfig(**sizes | options)).double())


def some_ids(vocab_size=60, batch=3, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size - 1, (batch, length), generator=generator)


LENGTHS = torch.tensor([9, 2, 5])


# --- BERT --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    files = pretrained.files("minilm")
    theirs = BertModel.from_pretrained(files["weights"].parent, attn_implementation="eager")
    return Bert.pretrained("minilm"), theirs.eval(), wordpiece_tokenizer()


@torch.no_grad()
def test_minilm_equals_transformers_on_real_sentences(minilm):
    ours, theirs, tokenizer = minilm
    ids, keep = tokenizer.encode(SENTENCES)
    out = ours(ids, keep, return_weights=True)
    expected = theirs(ids, attention_mask=keep.long(), output_attentions=True)
    torch.testing.assert_close(out.tokens[keep], expected.last_hidden_state[keep], **close)
    kept = keep[..., None].float()
    mean = (expected.last_hidden_state * kept).sum(dim=1) / kept.sum(dim=1)
    torch.testing.assert_close(out.pooled, mean, **close)
    for layer, attention in zip(out.weights, expected.attentions, strict=True):
        real = keep[:, None, :, None].expand_as(attention)
        torch.testing.assert_close(layer.self_attention[real], attention[real], **close)
    # The fused path, which is the one that is used.
    torch.testing.assert_close(ours(ids, keep).tokens, out.tokens, **close)


@torch.no_grad()
def test_minilm_equals_transformers_on_pairs(minilm):
    _, theirs, tokenizer = minilm
    ours = Bert.from_transformers(theirs)
    ids, keep, types = tokenizer.encode_pairs(SENTENCES, SENTENCES[::-1])
    out = ours(ids, keep, types)
    expected = theirs(ids, attention_mask=keep.long(), token_type_ids=types)
    torch.testing.assert_close(out.tokens[keep], expected.last_hidden_state[keep], **close)
    torch.testing.assert_close(out.pooled, expected.pooler_output, **close)
    assert not torch.allclose(out.tokens, ours(ids, keep).tokens, **close)  # types matter


@torch.no_grad()
def test_sentence_embeddings_equal_the_recipe_of_sentence_transformers(minilm):
    """Mean over the attention mask, then unit length: modules.json of the model."""
    ours, theirs, tokenizer = minilm
    vectors = embed_texts(ours, tokenizer, SENTENCES, batch_size=2)
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        ids, _ = tokenizer.encode([sentence])
        mean = theirs(ids).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(vector, nn.functional.normalize(mean)[0], **close)


@torch.no_grad()
def test_bert_base_equals_transformers():
    theirs = randomise(BertModel(TheirConfig(attn_implementation="eager")))
    ours = Bert.from_transformers(theirs)
    assert ours.config == BertConfig(mlp_dim=3072)
    assert sum(p.numel() for p in ours.parameters()) == 109_482_240
    ids, keep = some_ids(30522, 2, 20), padding_keep(torch.tensor([20, 7]))
    out, expected = ours(ids, keep), theirs(ids, attention_mask=keep.long())
    torch.testing.assert_close(out.tokens[keep], expected.last_hidden_state[keep], **close)
    torch.testing.assert_close(out.pooled, expected.pooler_output, **close)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_gradients_equal_transformers(pool):
    theirs = small_bert()
    ours = Bert.from_transformers(theirs, pool=pool)
    ids, keep = some_ids(), padding_keep(LENGTHS)
    types = some_ids(4, seed=1) % 3
    out = ours(ids, keep, types)
    expected = theirs(ids, attention_mask=keep.long(), token_type_ids=types)
    hidden = expected.last_hidden_state * keep[..., None]
    pooled = expected.pooler_output
    if pool == "mean":
        pooled = hidden.sum(dim=1) / keep.sum(dim=1, keepdim=True)
    exact = dict(rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.tokens, hidden, **exact)
    torch.testing.assert_close(out.pooled, pooled, **exact)
    probe = torch.randn(out.tokens.shape, dtype=torch.float64)
    ((out.tokens * probe).sum() + out.pooled.square().sum()).backward()
    ((hidden * probe).sum() + pooled.square().sum()).backward()
    close = dict(rtol=1e-10, atol=1e-10)
    theirs_by_name = {name: p.grad for name, p in theirs.named_parameters()}
    for mine, other in (
        ("embeddings.token.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.position.table", "embeddings.position_embeddings.weight"),
        ("embeddings.token_type.weight", "embeddings.token_type_embeddings.weight"),
        ("encoder.blocks.1.mlp_norm.weight", "encoder.layer.1.output.LayerNorm.weight"),
    ):
        gradient = ours.get_parameter(mine).grad
        expected = theirs_by_name[other]
        if other.startswith("embeddings.word"):  # theirs gives the padding id none
            gradient, expected = gradient[1:], expected[1:]
        torch.testing.assert_close(gradient, expected, **close)


def test_every_weight_is_used_and_copied():
    theirs = small_bert()
    ours = Bert.from_transformers(theirs)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1.0)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert not ours.training


def test_a_saved_folder_loads(tmp_path):
    theirs = small_bert().float()
    ids, keep = some_ids(), padding_keep(LENGTHS)
    expected = Bert.from_transformers(theirs)(ids, keep).pooled
    theirs.save_pretrained(tmp_path)
    assert torch.equal(Bert.from_transformers(tmp_path)(ids, keep).pooled, expected)
    assert torch.equal(Bert.from_transformers(str(tmp_path))(ids, keep).pooled, expected)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        Bert.from_transformers(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(Bert.from_transformers(tmp_path)(ids, keep).pooled, expected)


def test_a_pretraining_checkpoint_in_the_old_spelling_loads(tmp_path):
    """bert-base-uncased on the hub: ``bert.`` in front, gamma and beta, and heads behind."""
    whole = BertForPreTraining(small_bert().config).double()
    whole.bert.load_state_dict(small_bert().state_dict())
    spelt = {}
    for name, value in whole.state_dict().items():
        if "LayerNorm" in name and name.startswith("bert."):
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        spelt[name] = value
    config = BertConfig.from_transformers(whole.config)
    ids, keep = some_ids(), padding_keep(LENGTHS)
    ours = Bert.from_transformers(spelt, config, ignore=("cls.",))
    expected = Bert.from_transformers(whole.bert)(ids, keep).pooled
    assert torch.equal(ours(ids, keep).pooled, expected)
    with pytest.raises(ValueError, match="missing nothing; left over cls.predictions.bias"):
        Bert.from_transformers(spelt, config)


def test_weights_that_do_not_fit_are_named(tmp_path):
    theirs = small_bert()
    config, state = BertConfig.from_transformers(theirs.config), theirs.state_dict()
    with pytest.raises(ValueError, match="config is needed"):
        Bert.from_transformers(state)
    missing = {k: v for k, v in state.items() if k != "pooler.dense.bias"}
    with pytest.raises(ValueError, match="do not fit Bert: missing pooler.dense.bias; left over n"):
        Bert.from_transformers(missing, config)
    with pytest.raises(ValueError, match="missing nothing; left over head.weight"):
        Bert.from_transformers({**state, "head.weight": torch.zeros(2)}, config)
    name = "encoder.layer.0.attention.self.key.weight"
    with pytest.raises(ValueError, match=r"must have shape \(48, 16\): got \(47, 16\)"):
        Bert.from_transformers({**state, name: state[name][1:]}, config)
    name = "embeddings.position_embeddings.weight"
    with pytest.raises(ValueError, match=r"position.*must have shape \(12, 16\): got \(11, 16\)"):
        Bert.from_transformers({**state, name: state[name][1:]}, config)
    with pytest.raises(ValueError, match=" and 31 more; left over"):
        Bert.from_transformers({"x": torch.zeros(1)}, config)


@pytest.mark.parametrize(
    "name, value",
    [
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("model_type", "roberta"),
    ],
)
def test_what_is_not_bert_is_refused(name, value):
    given = {**TheirConfig().to_dict(), name: value}
    with pytest.raises(ValueError, match=f"{name} must be .*: got {value!r}"):
        BertConfig.from_transformers(given)


# --- CLIP's text tower ---------------------------------------------------------------------------


@torch.no_grad()
def test_text_transformer_equals_clip_at_the_size_of_vit_b_32():
    theirs = randomise(CLIPTextModel(CLIPTextConfig(attn_implementation="eager")))
    ours = TextTransformer.from_transformers(theirs)
    assert sum(p.numel() for p in ours.parameters()) == 63_165_952
    tokens = clip_tokenizer().encode([*SENTENCES[3:5], "word " * 200], truncate=True, pad_to=77)
    out = ours(*tokens)
    expected = theirs(tokens.ids, attention_mask=tokens.keep.long())
    torch.testing.assert_close(
        out.tokens[tokens.keep], expected.last_hidden_state[tokens.keep], **close
    )
    torch.testing.assert_close(out.pooled, expected.pooler_output, **close)
    # OpenAI's model is given no mask: nothing that stands before the end sees the padding.
    torch.testing.assert_close(out.pooled, theirs(tokens.ids).pooler_output, **close)
    torch.testing.assert_close(out.pooled, ours(tokens.ids).pooled, **close)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_transformer_equals_clip_with_gradients(activation):
    theirs = small_clip(hidden_act=activation)
    ours = TextTransformer.from_transformers(theirs)
    ids, keep = some_ids(), padding_keep(LENGTHS)
    ids[torch.arange(3), LENGTHS - 1] = 59
    out, expected = ours(ids, keep), theirs(ids, attention_mask=keep.long())
    exact = dict(rtol=1e-12, atol=1e-12)
    hidden = expected.last_hidden_state * keep[..., None]
    torch.testing.assert_close(out.tokens, hidden, **exact)
    torch.testing.assert_close(out.pooled, expected.pooler_output, **exact)
    out.pooled.square().sum().backward()
    expected.pooler_output.square().sum().backward()
    table = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(ours.token.weight.grad, table, rtol=1e-10, atol=1e-10)
    # A token added to the vocabulary later has a larger id than the end, and is not taken for it.
    assert ours.config.end_id == 59


@torch.no_grad()
def test_attention_weights_equal_clip():
    theirs = small_clip(attn_implementation="eager")
    ids, keep = some_ids(), padding_keep(LENGTHS)
    ids[torch.arange(3), LENGTHS - 1] = 59
    weights = TextTransformer.from_transformers(theirs)(ids, keep, return_weights=True).weights
    expected = theirs(ids, attention_mask=keep.long(), output_attentions=True).attentions
    for layer, attention in zip(weights, expected, strict=True):
        real = keep[:, None, :, None].expand_as(attention)
        torch.testing.assert_close(
            layer.self_attention[real], attention[real], rtol=0, atol=1e-6, check_dtype=False
        )


def test_old_clip_configurations_mean_the_largest_id():
    theirs = small_clip(eos_token_id=2)
    ours = TextTransformer.from_transformers(theirs)
    ids, keep = some_ids(), padding_keep(LENGTHS)
    ids[torch.arange(3), LENGTHS - 1] = 59
    torch.testing.assert_close(ours(ids, keep).pooled, theirs(ids).pooler_output)


def test_clip_weights_that_do_not_fit_are_named():
    theirs = small_clip()
    theirs.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="do not fit TextTransformer: .* left over extra.bias"):
        TextTransformer.from_transformers(theirs)
    with pytest.raises(ValueError, match="hidden_act must be one of .*: got 'silu'"):
        TextTransformer.from_transformers(small_clip(hidden_act="silu"))


# --- the recurrent encoder -----------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2])
def test_rnn_equals_pytorch_on_each_sentence_alone(cell, bidirectional, layers):
    config = TextRNNConfig(
        60, dim=8, layers=layers, cell=cell, bidirectional=bidirectional, embedding_dim=5
    )
    ours = TextRNN(config).double()
    kind = nn.GRU if cell == "gru" else nn.LSTM
    half = 4 if bidirectional else 8
    theirs = kind(5, half, layers, batch_first=True, bidirectional=bidirectional).double()
    theirs.load_state_dict(ours.rnn.state_dict())
    ids, keep = some_ids(), padding_keep(LENGTHS)
    out = ours(ids, keep)
    pooled = []
    for row, length in enumerate(LENGTHS.tolist()):
        alone, _ = theirs(ours.token(ids[row : row + 1, :length]))
        torch.testing.assert_close(out.tokens[row, :length], alone[0])
        last = [alone[0, -1, :half]] + ([alone[0, 0, half:]] if bidirectional else [])
        torch.testing.assert_close(out.pooled[row], torch.cat(last))
        pooled.append(torch.cat(last))
    out.pooled.square().sum().backward()
    mine = {name: parameter.grad.clone() for name, parameter in ours.rnn.named_parameters()}
    torch.stack(pooled).square().sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad)


def test_gru_equals_the_formula():
    """The equations of the docstring, step by step."""
    ours = TextRNN(TextRNNConfig(60, dim=6)).double()
    ids = some_ids(batch=1)
    weights = dict(ours.rnn.named_parameters())
    w_r, w_z, w_n = weights["weight_ih_l0"].chunk(3)
    u_r, u_z, u_n = weights["weight_hh_l0"].chunk(3)
    b_r, b_z, b_n = weights["bias_ih_l0"].chunk(3)
    c_r, c_z, c_n = weights["bias_hh_l0"].chunk(3)
    hidden = torch.zeros(6, dtype=torch.float64)
    for x in ours.token(ids)[0]:
        r = torch.sigmoid(w_r @ x + u_r @ hidden + b_r + c_r)
        z = torch.sigmoid(w_z @ x + u_z @ hidden + b_z + c_z)
        n = torch.tanh(w_n @ x + b_n + r * (u_n @ hidden + c_n))
        hidden = (1 - z) * n + z * hidden
    torch.testing.assert_close(ours(ids).pooled[0], hidden)


def test_safetensors_hold_every_encoder(tmp_path):
    """No shared memory, nothing left out."""
    for number, module in enumerate(
        (Bert.from_transformers(small_bert()), TextRNN(TextRNNConfig(9)))
    ):
        save_file(module.state_dict(), tmp_path / f"{number}.safetensors")
