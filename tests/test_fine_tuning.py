"""The classifier, cloze questions, and the score."""

import re

import pytest
import torch

from mmlib.encoders.bert import Bert, BertConfig
from mmlib.encoders.tokenizers import word_tokenizer
from mmlib.fine_tuning import BertClassifier, cloze, macro_f1
from mmlib.pretraining import BertForPretraining

TOKENIZER = word_tokenizer(["the star is red", "the ring is blue"])


def config(**changes) -> BertConfig:
    return BertConfig(
        vocab_size=TOKENIZER.vocab_size, dim=16, heads=2, layers=1, max_length=16, **changes
    )


def gap(text: str) -> str:
    return text.replace("_", "<mask>")


def masking_tokenizer():
    from tokenizers import AddedToken

    tokenizer = word_tokenizer(["the star is red", "the ring is blue"])
    tokenizer.backend.add_special_tokens([AddedToken("<mask>", normalized=False)])
    return tokenizer


def test_classifier_is_its_head_on_the_pooled_vector():
    bert = Bert(config(dropout=0.0))
    model = BertClassifier(bert, classes=3)
    ids = torch.tensor([[1, 5, 6, 2]])
    wanted = bert(ids).pooled @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(ids), wanted)
    assert model.bert is bert
    model(ids).sum().backward()
    assert all(
        p.grad is not None for name, p in bert.named_parameters() if "token_type" not in name
    )


def test_classifier_reads_mask_and_segments():
    model = BertClassifier(Bert(config(dropout=0.0)), classes=2)
    ids = torch.tensor([[1, 5, 6, 2]])
    keep = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(model(ids, keep), model(ids[:, :3]))
    types = torch.tensor([[0, 0, 1, 1]])
    assert (model(ids, None, types) - model(ids)).abs().max() > 1e-6


def test_cloze_reads_the_gap():
    tokenizer, words = masking_tokenizer(), ["red", "blue"]
    model = BertForPretraining(config())
    texts = [gap("the star is _"), gap("the _ is blue")]
    probabilities = cloze(model, tokenizer, texts, words)
    assert model.training  # as it was
    ids, keep = tokenizer.encode(texts)
    model.eval()
    with torch.no_grad():
        logits = model(ids, keep).mlm
    candidates = [tokenizer.encode([word]).ids[0, 1] for word in words]
    for row in range(2):
        place = ids[row].tolist().index(tokenizer.mask_id)
        wanted = logits[row, place, candidates].softmax(-1)
        torch.testing.assert_close(probabilities[row], wanted)


def test_bad_input_is_named(unchecked):
    model, tokenizer = BertForPretraining(config()), masking_tokenizer()
    one, two = torch.tensor([0]), torch.tensor([0, 1])
    for call, words in (
        (lambda: BertClassifier(model.bert, 1), "classes must be at least 2: got 1"),
        (lambda: cloze(model, tokenizer, ["the star"], ["red"]), "texts must have one <mask> each"),
        (
            lambda: cloze(model, tokenizer, [gap("_ is _")], ["red"]),
            "got '<mask> is <mask>'",
        ),
        (
            lambda: cloze(model, tokenizer, [gap("_ is")], ["purple"]),
            "words must be single tokens of the vocabulary: got 'purple'",
        ),
        (
            lambda: cloze(model, tokenizer, [gap("_ is")], ["red blue"]),
            "words must be single tokens of the vocabulary: got 'red blue'",
        ),
        (lambda: unchecked(macro_f1)(one, two, 2), "as long and not empty: got (1,) and (2,)"),
        (lambda: macro_f1(one[:0], one[:0], 2), "as long and not empty: got (0,)"),
        (lambda: macro_f1(two, two, 1), "classes must be above every label: got 1"),
        (lambda: macro_f1(-one - 1, one, 2), "labels from -1 to 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            call()


def test_the_most_frequent_class_everywhere_scores_low():
    actual = torch.tensor(90 * [0] + 10 * [1])
    always = torch.zeros(100, dtype=torch.long)
    assert (actual == always).double().mean() == 0.9
    assert macro_f1(always, actual, 2) < 0.5
