"""Chapter 12's parts beside their peers: packing, CTC, word error rates, and the whole model.

The model's peer is ``nn.Transformer`` of the same sizes behind the same embeddings: what is
measured is the cost of reading several modalities as one sequence, which should be none.
"""

import random

import jiwer
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.block import TransformerConfig
from mmlib.ctc import ctc_loss
from mmlib.data.batch import Batch
from mmlib.metrics.word_errors import word_error_rate
from mmlib.multimodal import MultimodalConfig, MultimodalTransformer
from mmlib.packing import document_keep, pack, unpack
from mmlib.transformer import Encoder

AREA = "Multimodal Transformers (chapter 12)"


def test_packing(side_by_side):
    """Rows of full length instead of short sequences that wait for a long one."""
    torch.manual_seed(0)
    sizes = [8, 12, 20, 9, 15, 6, 11, 120] * 4
    keep = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    tokens = torch.randn(len(sizes), max(sizes), 128)
    encoder = Encoder(TransformerConfig(dim=128, heads=4, layers=3)).eval()

    @torch.no_grad()
    def packed():
        laid = pack(tokens, keep)
        return unpack(encoder(laid.tokens, document_keep(laid.document))[0], laid, keep)

    @torch.no_grad()
    def padded():
        return encoder(tokens, keep)[0]

    torch.testing.assert_close(packed()[keep], padded()[keep], rtol=1e-4, atol=1e-4)
    table = side_by_side(
        "an encoder on 32 sequences of 6 to 120", {"packed": packed, "padded": padded}
    )
    table.as_fast("packed", "padded")


def test_ctc(side_by_side):
    """Ours is autograd's own: it is read, not used to train."""
    torch.manual_seed(0)
    logits = torch.randn(32, 30, 110)
    labels = torch.randint(1, 110, (32, 8))
    frames, words = torch.full((32,), 30), torch.full((32,), 8)

    def run(loss):
        x = logits.clone().requires_grad_()
        loss(x.log_softmax(2)).backward()
        return x.grad

    def ours():
        keep = torch.ones(32, 30, dtype=torch.bool)
        real = torch.ones(32, 8, dtype=torch.bool)
        return run(lambda p: ctc_loss(p, keep, labels, real).sum())

    def theirs():
        return run(lambda p: F.ctc_loss(p.transpose(0, 1), labels, frames, words, reduction="sum"))

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-5)
    side_by_side("CTC of 32 sentences, with gradients", {"mmlib": ours, "torch": theirs})


def test_word_errors(side_by_side):
    """Python beside C++: what a test set of a few hundred sentences costs."""
    dice = random.Random(0)
    words = [f"word{number}" for number in range(60)]
    said = [dice.choices(words, k=dice.randint(4, 10)) for _ in range(240)]
    heard = [[w for w in s if dice.random() < 0.9] or ["no"] for s in said]
    joined = [[" ".join(s) for s in texts] for texts in (said, heard)]
    contestants = {
        "mmlib": lambda: word_error_rate(said, heard),
        "jiwer": lambda: jiwer.wer(*joined),
    }
    assert abs(contestants["mmlib"]() - contestants["jiwer"]()) < 1e-12
    side_by_side("word error rate of 240 sentences", contestants)


def test_reading_and_writing(side_by_side):
    """A training step on a picture with a question, and the same blocks of torch."""
    torch.manual_seed(0)
    ours = MultimodalTransformer(MultimodalConfig(110)).train()
    config = ours.config
    blocks = nn.Transformer(
        config.dim,
        config.heads,
        config.layers,
        config.decoder_layers,
        4 * config.dim,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    ).train()
    batch = Batch(images=torch.rand(32, 3, 32, 32), text=torch.randint(5, 100, (32, 8)))
    ids = torch.randint(5, 100, (32, 8))
    causal = nn.Transformer.generate_square_subsequent_mask(8)

    def step(logits):
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        ours.zero_grad()
        blocks.zero_grad()

    def mine():
        step(ours(batch, ids))

    def theirs():
        source, _, _ = ours.embed(batch)
        target = ours.positions(config.dim**0.5 * ours.words(ids))
        x = blocks(source, target, tgt_mask=causal, tgt_is_causal=True)
        step(F.linear(x, ours.words.weight, ours.output_bias))

    table = side_by_side("a step on 32 pictures with questions", {"mmlib": mine, "torch": theirs})
    table.as_fast("mmlib", "torch")
