"""Matching: a search with towers beside a cross-encoder on every pair."""

import torch

from mmlib.cross_encoder import CrossEncoder, CrossEncoderConfig, rerank
from mmlib.encoders.encoded import Encoded

AREA = "Matching (chapter 7)"

PICTURES, QUERIES, TOP = 500, 4, 20


def test_towers_and_reranking_beside_the_cross_encoder_alone(side_by_side):
    model = CrossEncoder(CrossEncoderConfig(1280, 384)).eval()
    draw = torch.Generator().manual_seed(0)
    regions = torch.randn(PICTURES, 16, 1280, generator=draw)
    words = torch.randn(QUERIES, 6, 384, generator=draw)
    scores = torch.randn(QUERIES, PICTURES, generator=draw)

    def encoded(x):
        return Encoded(x, torch.ones(x.shape[:2], dtype=torch.bool), x[:, 0])

    @torch.no_grad()
    def ask(queries, items):
        return model(encoded(regions[items]), encoded(words[queries]))

    table = side_by_side(
        f"{QUERIES} queries among {PICTURES} pictures",
        {
            "first 20 re-ranked": lambda: rerank(scores, ask, TOP),
            "all pairs": lambda: rerank(scores, ask, PICTURES),
        },
        rounds=3,
    )
    table.at_most("first 20 re-ranked", "all pairs", 0.2)
