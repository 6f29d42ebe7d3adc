"""Checkers of chapter 03, pretraining."""

import torch
import torch.nn.functional as F

from mmlib.exercises.report import call, check_function, checker, compare, require
from mmlib.pretraining import IGNORE


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker(
    "Every disguise lies inside the choice, and a chosen token that was left as it is counts in "
    "the loss like the others."
)
def check_disguise(answer):
    """Exercise 1: ``answer(ids, chosen, kind, random, mask_id)`` gives inputs and targets."""

    def reference(ids, chosen, kind, random, mask_id):
        disguised = torch.where(chosen & (kind < 0.8), mask_id, ids)
        disguised = torch.where(chosen & (kind >= 0.9), random, disguised)
        return disguised, torch.where(chosen, ids, IGNORE)

    def outside(ids, chosen, kind, random, mask_id):
        disguised = torch.where(chosen & (kind < 0.8), mask_id, ids)
        return torch.where(kind >= 0.9, random, disguised), torch.where(chosen, ids, IGNORE)

    def always_mask(ids, chosen, kind, random, mask_id):
        return torch.where(chosen, mask_id, ids), torch.where(chosen, ids, IGNORE)

    def only_masked(ids, chosen, kind, random, mask_id):
        disguised, _ = reference(ids, chosen, kind, random, mask_id)
        return disguised, torch.where(disguised != ids, ids, IGNORE)

    def disguised_targets(ids, chosen, kind, random, mask_id):
        disguised, _ = reference(ids, chosen, kind, random, mask_id)
        return disguised, torch.where(chosen, disguised, IGNORE)

    def everywhere(ids, chosen, kind, random, mask_id):
        return reference(ids, chosen, kind, random, mask_id)[0], ids

    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(10, 50).view(2, 20)
    random = torch.randint(100, 200, (2, 20), generator=generator)
    kind = torch.rand(2, 20, generator=generator)
    chosen = torch.rand(2, 20, generator=generator) < 0.5
    small = (
        torch.tensor([[7, 8, 9, 6]]),
        torch.tensor([[True, True, True, False]]),
        torch.tensor([[0.1, 0.85, 0.95, 0.99]]),
        torch.tensor([[20, 21, 22, 23]]),
        4,
    )
    check_function(
        answer,
        reference,
        [small, (ids, chosen, kind, random, 4)],
        mistakes={
            "tokens outside the choice became random ones. Replace only where `chosen` is true": (
                outside
            ),
            "every chosen token became the mask; 10 % are to be random and 10 % stay": always_mask,
            "a chosen token that stayed as it is has no target. It is predicted like the others": (
                only_masked
            ),
            "the targets are the disguised tokens; they should be the true ones": disguised_targets,
            "every token has a target; those outside the choice get -100": everywhere,
        },
        name="(inputs, targets)",
    )


@checker("Sums and counts are added first and divided once, so every chosen token weighs the same.")
def check_loss(answer):
    """Exercise 2: ``answer(logits, targets)`` is the mean loss over the chosen tokens of all."""

    def reference(logits, targets):
        flat, wanted = (
            torch.cat([x.flatten(0, 1) for x in logits]),
            torch.cat([x.flatten() for x in targets]),
        )
        if (wanted == IGNORE).all():
            return flat.sum() * 0
        return F.cross_entropy(flat, wanted, ignore_index=IGNORE)

    def mean_of_means(logits, targets):
        parts = [
            F.cross_entropy(a.flatten(0, 1), b.flatten(), ignore_index=IGNORE)
            for a, b in zip(logits, targets, strict=True)
        ]
        return sum(parts) / len(parts)

    def over_everything(logits, targets):
        total = sum(
            F.cross_entropy(a.flatten(0, 1), b.flatten(), ignore_index=IGNORE, reduction="sum")
            for a, b in zip(logits, targets, strict=True)
        )
        return total / sum(b.numel() for b in targets)

    logits = [_draw(2, 5, 8, seed=1), 3 * _draw(2, 5, 8, seed=2)]
    some = torch.full((2, 5), IGNORE)
    some[0, 1] = 3
    many = torch.randint(8, (2, 5), generator=torch.Generator().manual_seed(3))
    check_function(
        answer,
        reference,
        [([logits[0]], [many]), (logits, [some, many])],
        mistakes={
            "this is the mean of the batches' means, in which the one token of the first batch "
            "weighs as much as all ten of the second": mean_of_means,
            "the sum is divided by the number of all tokens; only the chosen ones count": (
                over_everything
            ),
        },
        name="the loss",
    )
    empty = call(answer, [logits[0]], [torch.full((2, 5), IGNORE)])
    value = float(empty)
    require(value == value, "with nothing chosen the loss is NaN, 0/0; it should be 0")
    require(value == 0, f"with nothing chosen the loss should be 0, not {value:.4g}")


@checker("Residual path, two norms, and the softmax after the linear layer: 004's block put right.")
def check_block(answer):
    """Exercise 3: ``answer(h, attention, norm1, feed_forward, norm2, linear)``: BERT put right."""
    norm1, norm2, linear = torch.nn.LayerNorm(6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 5)
    mix, matrix = _draw(4, 4, seed=1).softmax(-1), _draw(6, 6, seed=2)
    with torch.no_grad():
        norm1.weight.copy_(_draw(6, seed=3))
        norm2.bias.copy_(_draw(6, seed=4))

    def attention(x):
        return mix @ x

    def feed_forward(x):
        return torch.relu(x @ matrix)

    def reference(h, attention, norm1, feed_forward, norm2, linear):
        a = norm1(h + attention(h))
        return linear(norm2(a + feed_forward(a))).softmax(-1)

    def of_the_document(h, attention, norm1, feed_forward, norm2, linear):
        return linear(norm2(feed_forward(attention(h))).softmax(-1))

    def no_residual(h, attention, norm1, feed_forward, norm2, linear):
        return linear(norm2(feed_forward(norm1(attention(h))))).softmax(-1)

    def pre_norm(h, attention, norm1, feed_forward, norm2, linear):
        a = h + attention(norm1(h))
        return linear(a + feed_forward(norm2(a))).softmax(-1)

    def one_norm(h, attention, norm1, feed_forward, norm2, linear):
        a = h + attention(h)
        return linear(norm2(a + feed_forward(a))).softmax(-1)

    def softmax_first(h, attention, norm1, feed_forward, norm2, linear):
        a = norm1(h + attention(h))
        return linear(norm2(a + feed_forward(a)).softmax(-1))

    def logits(h, attention, norm1, feed_forward, norm2, linear):
        a = norm1(h + attention(h))
        return linear(norm2(a + feed_forward(a)))

    with torch.no_grad():
        check_function(
            answer,
            reference,
            [(_draw(2, 4, 6, seed=5), attention, norm1, feed_forward, norm2, linear)],
            mistakes={
                "this is the document's formula: no residual path, one norm, softmax before the "
                "linear layer": of_the_document,
                "the residual connections are missing: each sublayer's output is added to what "
                "entered it": no_residual,
                "this is pre-norm; BERT is post-norm: the sum is what is normalised": pre_norm,
                "the norm after attention is missing: there are two in a block": one_norm,
                "the softmax comes before the linear layer, and the result is no distribution": (
                    softmax_first
                ),
                "these are logits; the softmax is missing": logits,
            },
            name="the distribution",
        )


@checker("The probability of a text is that of its tokens, so perplexity is a geometric mean.")
def check_perplexity(answer):
    """Exercise 4: ``answer(log_probs, keep)`` is the perplexity of a batch of padded texts."""

    def reference(log_probs, keep):
        return torch.exp(-log_probs[keep].mean())

    def with_padding(log_probs, keep):
        return torch.exp(-log_probs.mean())

    def mean_of_texts(log_probs, keep):
        means = [-row[real].mean() for row, real in zip(log_probs, keep, strict=True)]
        return torch.exp(torch.stack(means)).mean()

    def mean_of_exp(log_probs, keep):
        return torch.exp(-log_probs[keep]).mean()

    def bits(log_probs, keep):
        return 2 ** (-log_probs[keep].mean())

    quarter = torch.full((1, 3), 0.25).log()
    padded = _draw(3, 6, seed=8).abs().neg()
    keep = torch.arange(6) < torch.tensor([[6], [2], [4]])
    check_function(
        answer,
        reference,
        [(quarter, torch.ones(1, 3, dtype=torch.bool)), (padded, keep)],
        mistakes={
            "padding counts in your mean; take only where `keep` is true": with_padding,
            "this is the mean of the texts' perplexities: a short text weighs as much as a long "
            "one. Take the mean over all tokens first": mean_of_texts,
            "the mean stands outside of the exponential: perplexity is the exponential of the mean "
            "negative log-probability": mean_of_exp,
            "the logarithms are natural, so the base is e and not 2": bits,
        },
        name="the perplexity",
    )


@checker("The zero-shot label is the description whose direction is nearest to the text's.")
def check_zero_shot(answer):
    """Exercise 5: ``answer(texts, descriptions)``: the class of each text, several each."""

    def normalise(x):
        return x / x.norm(dim=-1, keepdim=True)

    def reference(texts, descriptions):
        centres = normalise(normalise(descriptions).mean(dim=1))
        return (normalise(texts) @ centres.T).argmax(-1)

    def dot(texts, descriptions):
        return (texts @ descriptions.mean(dim=1).T).argmax(-1)

    def first_only(texts, descriptions):
        return (normalise(texts) @ normalise(descriptions[:, 0]).T).argmax(-1)

    def farthest(texts, descriptions):
        centres = normalise(normalise(descriptions).mean(dim=1))
        return (normalise(texts) @ centres.T).argmin(-1)

    lengths = torch.tensor([[[1.0], [1.0]], [[30.0], [2.0]], [[0.1], [9.0]]])
    descriptions = normalise(_draw(3, 2, 8, seed=21)) * lengths
    texts = _draw(60, 8, seed=22)
    check_function(
        answer,
        reference,
        [(texts, descriptions)],
        mistakes={
            "vectors are compared by their dot product, so a long description wins. Divide each "
            "by its length first": dot,
            "only the first description of each class is used": first_only,
            "the farthest class is taken instead of the nearest": farthest,
        },
        name="the classes",
    )
    compare(
        call(answer, 5 * texts, descriptions),
        reference(texts, descriptions),
        name="the classes of the same texts, five times as long",
    )
