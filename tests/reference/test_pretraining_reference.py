"""Pretraining heads are equal to transformers', smoothing to NLTK's, F1 to scikit-learn's."""

import pytest
import torch
from nltk.lm import WittenBellInterpolated
from nltk.lm.preprocessing import everygrams
from sklearn.metrics import f1_score
from transformers import BertConfig as TheirConfig
from transformers import BertForPreTraining, GPT2Config, GPT2LMHeadModel

from mmlib.block import TransformerConfig
from mmlib.encoders.bert import BertConfig
from mmlib.fine_tuning import macro_f1
from mmlib.language_model import CausalLM, NGram, next_token_loss
from mmlib.pretraining import IGNORE, BertForPretraining, mlm_loss, nsp_loss

SMALL = dict(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=12,
)


def draw(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def theirs(**sizes):
    torch.manual_seed(1)
    model = BertForPreTraining(TheirConfig(**sizes, attn_implementation="eager"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # random biases and norms too: zeros would hide a missing one
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.02 if parameter.ndim == 2 else 0.2) * noise)
    return model.eval()


def batch(vocab, length):
    ids, types = draw(vocab, 2, length), (torch.arange(length) >= length // 2).long().expand(2, -1)
    keep = torch.arange(length) < torch.tensor([[length], [length - 3]])
    targets = draw(vocab, 2, length, seed=5).masked_fill(draw(100, 2, length, seed=6) > 15, IGNORE)
    return ids, keep, types, targets.masked_fill(~keep, IGNORE), torch.tensor([True, False])


def compare(model, vocab, length, atol):
    ids, keep, types, targets, is_next = batch(vocab, length)
    targets[:, 1] = ids[:, 1]  # at least one
    with torch.no_grad():
        wanted = model(
            ids,
            attention_mask=keep.long(),
            token_type_ids=types,
            labels=targets,
            next_sentence_label=(~is_next).long(),
        )
        ours = BertForPretraining.from_transformers(model)
        assert not ours.training
        out = ours(ids, keep, types)
    real = (out.mlm - wanted.prediction_logits).abs()[keep]
    assert real.max() < atol and (out.nsp - wanted.seq_relationship_logits).abs().max() < atol
    (a, n), (b, m) = mlm_loss(out.mlm, targets), nsp_loss(out.nsp, is_next)
    assert abs(a / n + b / m - wanted.loss) < 1e-5
    return ours


def test_equal_to_transformers_at_bert_base_size():
    model = theirs()  # transformers' defaults are those of bert-base-uncased
    ours = compare(model, 30522, 16, atol=2e-5)
    config = ours.bert.config
    assert (config.dim, config.layers, config.heads, config.vocab_size) == (768, 12, 12, 30522)
    # 109.5 million and the heads: the tied decoder is counted once.
    assert sum(p.numel() for p in ours.parameters()) == model.num_parameters() == 110_106_428


def test_gradients_are_equal():
    model = theirs(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ours = BertForPretraining.from_transformers(model)
    ids, keep, types, targets, is_next = batch(60, 12)
    wanted = model(
        ids,
        attention_mask=keep.long(),
        token_type_ids=types,
        labels=targets,
        next_sentence_label=(~is_next).long(),
    )
    wanted.loss.backward()
    where = targets != IGNORE
    out = ours(ids, keep, types, where=where)
    (a, n), (b, m) = mlm_loss(out.mlm, targets[where]), nsp_loss(out.nsp, is_next)
    (a / n + b / m).backward()
    # The tied table gets gradients from both ends. Theirs gives token 0, its padding, none from
    # below, even where it is no padding.
    table = model.bert.embeddings.word_embeddings.weight.grad
    mine = ours.bert.embeddings.token.weight.grad
    torch.testing.assert_close(mine[1:], table[1:], rtol=1e-4, atol=1e-6)
    for mine, other in (
        (ours.transform, model.cls.predictions.transform.dense),
        (ours.norm, model.cls.predictions.transform.LayerNorm),
        (ours.next_sentence, model.cls.seq_relationship),
    ):
        torch.testing.assert_close(mine.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine.bias.grad, other.bias.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        ours.bias.grad, model.cls.predictions.bias.grad, rtol=1e-4, atol=1e-6
    )


def test_a_saved_folder_and_a_state_dict_load(tmp_path):
    model = theirs(**SMALL)
    model.save_pretrained(tmp_path)
    config = BertConfig.from_transformers(model.config)
    ids = draw(60, 2, 8)
    with torch.no_grad():
        wanted = BertForPretraining.from_transformers(model)(ids)
        for source, sizes in ((tmp_path, None), (model.state_dict(), config)):
            found = BertForPretraining.from_transformers(source, sizes)(ids)
            torch.testing.assert_close(found.mlm, wanted.mlm)
            torch.testing.assert_close(found.nsp, wanted.nsp)


def test_missing_heads_are_named():
    model = theirs(**SMALL)
    state = {k: v for k, v in model.state_dict().items() if "seq_relationship" not in k}
    with pytest.raises(ValueError, match=r"missing cls\.seq_relationship"):
        BertForPretraining.from_transformers(state, BertConfig.from_transformers(model.config))


def test_loading_copies():
    model = theirs(**SMALL)
    ours = BertForPretraining.from_transformers(model)
    with torch.no_grad():
        ours.bias.add_(1.0)
        ours.bert.embeddings.token.weight.add_(1.0)
    assert (model.cls.predictions.bias - ours.bias).abs().min() > 0.5
    table = model.bert.embeddings.word_embeddings.weight
    assert (table - ours.bert.embeddings.token.weight).abs().min() > 0.5


def test_causal_model_and_loss_are_gpt2s():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu", attn_implementation="eager",
    )  # fmt: skip
    gpt = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    ours = CausalLM(
        TransformerConfig(
            dim=16, heads=4, layers=2, target_vocab=60, max_length=16, norm_eps=1e-5, dropout=0.0
        )
    ).eval()
    with torch.no_grad():
        ours.token.weight.copy_(gpt.transformer.wte.weight)
        ours.position.table.copy_(gpt.transformer.wpe.weight)
        pairs = [(ours.decoder.norm, gpt.transformer.ln_f)]
        for mine, other in zip(ours.decoder.blocks, gpt.transformer.h, strict=True):
            pairs += [(mine.self_norm, other.ln_1), (mine.mlp_norm, other.ln_2)]
            for linear, conv in (
                (mine.self_attention.qkv_proj, other.attn.c_attn),
                (mine.self_attention.out_proj, other.attn.c_proj),
                (mine.mlp[0], other.mlp.c_fc),
                (mine.mlp[3], other.mlp.c_proj),
            ):
                linear.weight.copy_(conv.weight.T)  # GPT-2 stores its matrices transposed
                linear.bias.copy_(conv.bias)
        for mine, other in pairs:
            mine.weight.copy_(other.weight)
            mine.bias.copy_(other.bias)
        ids = draw(60, 3, 12)
        wanted = gpt(ids, labels=ids)
        logits = ours(ids)
        total, count = next_token_loss(logits, ids)
    torch.testing.assert_close(logits, wanted.logits, rtol=0, atol=1e-5)
    assert count == 33
    assert abs(total / count - wanted.loss) < 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_ngram_is_nltks_witten_bell(order):
    texts = [draw(6, 30, seed=s).tolist() for s in range(4)]
    model = NGram(texts, order, vocab=6)
    reference = WittenBellInterpolated(order)
    words = [[str(token) for token in text] for text in texts]
    reference.fit(
        [list(everygrams(text, max_len=order)) for text in words], [str(t) for t in range(6)]
    )
    for text in words:  # their unigrams count the first tokens too, which to us are given
        reference.counts.unigrams[text[0]] -= 1
    history = texts[0][5 : 5 + order - 1]
    for token in range(6):
        expected = reference.score(str(token), [str(t) for t in history])
        # Their single tokens are not mixed with the even distribution: exchanged, all is equal.
        value = model.counts[()][token] / model.totals[()]
        for length in range(1, order):
            key = tuple(history[len(history) - length :])
            kinds = len(model.counts[key])
            value = (model.counts[key][token] + kinds * value) / (model.totals[key] + kinds)
        assert value == pytest.approx(expected, rel=1e-9)
        one = (model.counts[()][token] + 6 / 6) / (model.totals[()] + 6)
        shift = value - model.probability(token, history)
        assert abs(shift) <= abs(model.counts[()][token] / model.totals[()] - one) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed):
    predicted, actual = draw(5, 40, seed=seed), draw(4, 40, seed=seed + 50)
    wanted = f1_score(actual, predicted, average="macro", labels=range(6), zero_division=0)
    assert macro_f1(predicted, actual, 6) == pytest.approx(wanted)
