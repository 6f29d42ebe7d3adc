"""Text encoders and tokenizers beside transformers and open_clip, with the same weights."""

import pytest
import torch
from transformers import BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel

from mmlib.attention import padding_keep
from mmlib.data import scenes
from mmlib.encoders import pretrained
from mmlib.encoders.text import Bert, TextRNN, TextRNNConfig, TextTransformer
from mmlib.encoders.tokenizers import bpe_tokenizer, clip_tokenizer, wordpiece_tokenizer

AREA = "Text encoders and tokenizers"

PRECISIONS = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16"),
]
BATCH, LENGTH = 32, 32


def same(ours, theirs, dtype):
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@torch.no_grad()
def test_bert_encoding(side_by_side, dtype, padded):
    folder = pretrained.files("minilm")["weights"].parent
    theirs = BertModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    ours = Bert.from_transformers(theirs).to(dtype)
    theirs.to(dtype)
    ids = torch.randint(1000, 30000, (BATCH, LENGTH))
    lengths = torch.arange(1, BATCH + 1) if padded else torch.full((BATCH,), LENGTH)
    keep = padding_keep(lengths)
    mask = keep.long()
    contestants = {
        "mmlib": lambda: ours(ids, keep).pooled,
        "transformers": lambda: theirs(ids, attention_mask=mask).pooler_output,
    }
    same(*(f() for f in contestants.values()), dtype)
    kind = "padded" if padded else "full"
    table = side_by_side(f"MiniLM, {BATCH}×{LENGTH} tokens, {kind}, {dtype}, encode", contestants)
    table.per_second(BATCH * LENGTH, "tokens")
    table.as_fast("mmlib", "transformers")
    table.light("mmlib", "transformers", 1.1, 2)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_bert_training(side_by_side, dtype):
    folder = pretrained.files("minilm")["weights"].parent
    theirs = BertModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    ours = Bert.from_transformers(theirs).to(dtype)
    theirs.to(dtype)
    ids = torch.randint(1000, 30000, (BATCH, LENGTH))
    keep = padding_keep(torch.arange(1, BATCH + 1))
    mask = keep.long()

    def step(model, pooled):
        model.zero_grad()
        pooled().square().mean().backward()

    contestants = {
        "mmlib": lambda: step(ours, lambda: ours(ids, keep).pooled),
        "transformers": lambda: step(theirs, lambda: theirs(ids, mask).pooler_output),
    }
    title = f"MiniLM, {BATCH}×{LENGTH} tokens, padded, {dtype}, forward + backward"
    table = side_by_side(title, contestants)
    table.per_second(BATCH * LENGTH, "tokens")
    table.as_fast("mmlib", "transformers")


@pytest.mark.parametrize("dtype", PRECISIONS)
@torch.no_grad()
def test_clip_text_encoding(side_by_side, dtype):
    theirs = CLIPTextModel(CLIPTextConfig(attn_implementation="sdpa")).eval()
    ours = TextTransformer.from_transformers(theirs).to(dtype)
    theirs.to(dtype)
    captions = [scenes.caption(scene) for scene in scenes.sample(4, seed=0)]
    ids, keep = clip_tokenizer().encode(captions, pad_to=77)
    mask = keep.long()
    contestants = {
        "mmlib": lambda: ours(ids, keep).pooled,
        "mmlib, no mask": lambda: ours(ids).pooled,
        "transformers": lambda: theirs(ids, attention_mask=mask).pooler_output,
        "transformers, no mask": lambda: theirs(ids).pooler_output,
    }
    for f in contestants.values():
        same(contestants["mmlib"](), f(), dtype)
    title = f"CLIP's text tower at ViT-B/32, 4×77 tokens, {dtype}, encode"
    table = side_by_side(title, contestants, rounds=10)
    table.per_second(ids.numel(), "tokens")
    table.as_fast("mmlib", "transformers")
    table.as_fast("mmlib, no mask", "transformers, no mask")


@torch.no_grad()
def test_recurrent_encoding(side_by_side):
    ours = TextRNN(TextRNNConfig(1000, dim=256)).eval()
    ids = torch.randint(1000, (BATCH, LENGTH))
    keep = padding_keep(torch.arange(1, BATCH + 1))
    contestants = {
        "mmlib, packed": lambda: ours(ids, keep).pooled,
        "nn.GRU, padding read": lambda: ours.rnn(ours.token(ids))[1],
    }
    table = side_by_side(f"GRU of width 256, {BATCH}×{LENGTH} tokens, padded, encode", contestants)
    table.per_second(int(keep.sum()), "tokens")
    table.as_fast("mmlib, packed", "nn.GRU, padding read")  # half of it is padding


def captions():
    return [scenes.caption(scene, "en", "free", 1) for scene in scenes.sample(1000, seed=0)]


def test_wordpiece(side_by_side):
    texts = captions()
    ours = wordpiece_tokenizer()
    theirs = BertTokenizer(vocab=str(pretrained.files("minilm")["vocabulary"]))
    contestants = {
        "mmlib": lambda: ours.encode(texts),
        "transformers": lambda: theirs(texts, padding=True, return_tensors="pt"),
    }
    ids, keep = ours.encode(texts)
    assert torch.equal(ids, contestants["transformers"]()["input_ids"])
    table = side_by_side("word pieces of 1,000 captions", contestants)
    table.per_second(int(keep.sum()), "tokens")
    table.as_fast("mmlib", "transformers")


def test_clip_tokens(side_by_side):
    from open_clip.tokenizer import SimpleTokenizer

    texts = captions()
    ours, theirs = clip_tokenizer(), SimpleTokenizer()
    contestants = {
        "mmlib": lambda: ours.encode(texts, truncate=True, pad_to=77).ids,
        "open_clip": lambda: theirs(texts),
    }
    assert torch.equal(*(f() for f in contestants.values()))
    table = side_by_side("CLIP's byte pairs of 1,000 captions", contestants)
    table.per_second(int(ours.encode(texts).keep.sum()), "tokens")
    table.as_fast("mmlib", "open_clip")


def test_byte_pairs(side_by_side):
    texts = captions()
    trained = bpe_tokenizer(texts, 600)
    contestants = {
        "encode": lambda: trained.encode(texts),
        "train 600 ids": lambda: bpe_tokenizer(texts, 600),
    }
    table = side_by_side("our own byte pairs of 1,000 captions", contestants)
    table.goal("1,000 captions encoded", table.seconds("encode"), at_most=0.5, unit="s")
