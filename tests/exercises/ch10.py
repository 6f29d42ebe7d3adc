"""Answers to chapter 10's exercises: right ones, and typical mistakes with words of the message."""

import torch
import torch.nn.functional as F

from mmlib.data.twins import twin_scores
from mmlib.encoders.pooling import end_positions, take_tokens
from mmlib.zero_shot import class_vectors


def end(tokens, ids, end_id):
    return take_tokens(tokens, end_positions(ids, end_id))


def logits(image, text, w_image, w_text, log_scale):
    image, text = image @ w_image.T, text @ w_text.T
    return min(float(log_scale.exp()), 100.0) * F.cosine_similarity(
        image[:, None], text[None], dim=-1
    )


def classes(vectors):
    number, prompts, _ = vectors.shape
    return class_vectors(
        lambda texts: vectors.flatten(0, 1), ["x"] * number, [f"{{}} {i}" for i in range(prompts)]
    )


def twin_shares(score):
    """From vectors that have these scores: a picture is its row, a caption picks a column."""
    captions = torch.eye(2).expand(len(score), 2, 2)
    return tuple(twin_scores(score.unbind(1), captions.unbind(1)).values())


def unlocked(model):
    for parameter in model.image.parameters():
        parameter.requires_grad_(False)
    return [name for name, p in model.named_parameters() if p.requires_grad]


SOLUTIONS = {
    "check_class_vectors": classes,
    "check_end": end,
    "check_logits": logits,
    "check_twins": twin_shares,
    "check_unlocked": unlocked,
}


def at(tokens, places):
    return tokens[torch.arange(len(tokens)), places]


def cosines(i, t, wi, wt):
    return F.normalize(i @ wi.T, dim=1) @ F.normalize(t @ wt.T, dim=1).T


def early(i, t, wi, wt, s):
    i, t = F.normalize(i, dim=1) @ wi.T, F.normalize(t, dim=1) @ wt.T
    return s.exp().clamp(max=100) * (i @ t.T)


def ties_count(score):
    caption = score.diagonal(dim1=1, dim2=2) >= torch.stack([score[:, 0, 1], score[:, 1, 0]], 1)
    picture = score.diagonal(dim1=1, dim2=2) >= torch.stack([score[:, 1, 0], score[:, 0, 1]], 1)
    every = caption.all(1) & picture.all(1)
    return tuple(float(x.double().mean()) for x in (caption, picture, every))


def in_place(tokens, ids, end_id):
    ids[:, 0] = 0
    return end(tokens, ids, end_id)


def names(model, wanted):
    return [name for name, _ in model.named_parameters() if wanted(name)]


WRONG = [
    ("check_end", lambda x, i, e: at(x, i.argmax(1)), "largest id"),
    ("check_end", lambda x, i, e: x[:, -1], "last position"),
    (
        "check_end",
        lambda x, i, e: at(x, (i == e).int().cumsum(1).argmax(1)),
        "last end token",
    ),
    ("check_end", lambda x, i, e: at(x, end_positions(i, e) - 1), "before the end"),
    ("check_end", lambda x, i, e: x[:, 0], "seen nothing"),
    ("check_end", lambda x, i, e: x.mean(1), "over all positions"),
    ("check_end", in_place, "in place"),
    (
        "check_logits",
        lambda i, t, wi, wt, s: s.exp() * (i @ wi.T) @ (t @ wt.T).T,
        "divided by their length",
    ),
    ("check_logits", early, "before the projections"),
    ("check_logits", lambda *a: a[-1] * cosines(*a[:-1]), "logarithm of the factor"),
    ("check_logits", lambda *a: cosines(*a[:-1]) / a[-1].exp(), "inverse"),
    ("check_logits", lambda *a: a[-1].exp() * cosines(*a[:-1]), "held at 100"),
    ("check_logits", lambda *a: logits(*a).T, "rows must be pictures"),
    ("check_logits", lambda *a: logits(*a).softmax(1), "belongs to the loss"),
    ("check_class_vectors", lambda v: F.normalize(v.sum(1), dim=-1), "more votes"),
    ("check_class_vectors", lambda v: F.normalize(v, dim=-1).mean(1), "shorter than 1"),
    (
        "check_class_vectors",
        lambda v: F.normalize(F.normalize(v, dim=-1).sum(0), dim=-1),
        "over the classes",
    ),
    ("check_class_vectors", lambda v: v.mean(1), "nothing is divided"),
    ("check_class_vectors", lambda v: F.normalize(v[:, 0], dim=-1), "first prompt alone"),
    ("check_twins", ties_count, "a tie counts"),
    ("check_twins", lambda s: twin_shares(s.mT), "confused"),
    (
        "check_twins",
        lambda s: (*twin_shares(s)[:2], twin_shares(s)[0] * twin_shares(s)[1]),
        "same pair",
    ),
    (
        "check_twins",
        lambda s: (
            float((s.argmax(2) == torch.arange(2)).all(1).double().mean()),
            float((s.argmax(1) == torch.arange(2)).all(1).double().mean()),
            twin_shares(s)[2],
        ),
        "two for each pair",
    ),
    (
        "check_unlocked",
        lambda m: names(m, lambda n: not n.startswith("image")),
        "begins with",
    ),
    (
        "check_unlocked",
        lambda m: names(m, lambda n: not n.startswith("image.") and "scale" not in n),
        "the scale",
    ),
    ("check_unlocked", lambda m: names(m, lambda n: n[:5] != "text."), "stands still"),
    ("check_unlocked", lambda m: names(m, lambda n: True), "all parameters"),
    (
        "check_unlocked",
        lambda m: names(m, lambda n: n[:5] != "text." and n[:6] != "image."),
        "not the projections alone",
    ),
    ("check_unlocked", lambda m: names(m, lambda n: n[:5] == "text."), "as well as"),
]
