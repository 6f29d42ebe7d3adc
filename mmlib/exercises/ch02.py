"""Checkers of chapter 02, the Transformer."""

import torch

from mmlib.exercises.report import call, check_function, checker, compare, require
from mmlib.positions import sinusoids


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker(
    "The input at each place is the token before the one that is to be predicted there, so the "
    "decoder never sees its answer."
)
def check_shift(answer):
    """Exercise 1: ``answer(target, begin)`` gives the decoder's input under teacher forcing."""

    def reference(target, begin):
        return torch.cat([torch.full_like(target[:, :1], begin), target[:, :-1]], dim=1)

    def rolled(target, begin):
        return target.roll(1, dims=1)

    def too_long(target, begin):
        return torch.cat([torch.full_like(target[:, :1], begin), target], dim=1)

    def left(target, begin):
        return torch.cat([target[:, 1:], torch.full_like(target[:, :1], begin)], dim=1)

    check_function(
        answer,
        reference,
        [(torch.tensor([[5, 6, 7, 2]]), 1), (torch.tensor([[5, 2], [4, 2], [9, 2]]), 3)],
        mistakes={
            "the last token came round to the front; `roll` is a circle. The first input is "
            "`begin`": rolled,
            "the last token is still there, so the inputs are one longer than the targets": (
                too_long
            ),
            "the tokens moved to the left, so each input is the token after its target": left,
            "nothing moved: each input is the token to be predicted, which is the answer": (
                lambda target, begin: target
            ),
        },
        name="the decoder's input",
    )


@checker("The stream itself is never normalised; only what each sublayer reads is.")
def check_pre_norm(answer):
    """Exercise 2: ``answer(x, norm1, attend, norm2, feed_forward)`` is a pre-norm block."""
    norm1, norm2 = torch.nn.LayerNorm(6), torch.nn.LayerNorm(6)
    mix, matrix = _draw(4, 4, seed=1).softmax(-1), _draw(6, 6, seed=2)
    with torch.no_grad():
        norm1.weight.copy_(_draw(6, seed=3))
        norm2.bias.copy_(_draw(6, seed=4))

    def attend(x):
        return mix @ x

    def feed_forward(x):
        return torch.relu(x @ matrix)

    def reference(x, norm1, attend, norm2, feed_forward):
        x = x + attend(norm1(x))
        return x + feed_forward(norm2(x))

    def post_norm(x, norm1, attend, norm2, feed_forward):
        x = norm1(x + attend(x))
        return norm2(x + feed_forward(x))

    def no_residual(x, norm1, attend, norm2, feed_forward):
        return feed_forward(norm2(attend(norm1(x))))

    def normalised_stream(x, norm1, attend, norm2, feed_forward):
        x = norm1(x)
        x = norm2(x + attend(x))
        return x + feed_forward(x)

    def parallel(x, norm1, attend, norm2, feed_forward):
        return x + attend(norm1(x)) + feed_forward(norm2(x))

    with torch.no_grad():
        check_function(
            answer,
            reference,
            [(_draw(2, 4, 6, seed=5), norm1, attend, norm2, feed_forward)],
            mistakes={
                "this is post-norm: the sum is normalised. Pre-norm normalises only what enters "
                "`attend` and `feed_forward`": post_norm,
                "the residual connections are missing: add each sublayer's output to what "
                "entered": no_residual,
                "the stream itself was normalised. Add to `x`, not to `norm(x)`": normalised_stream,
                "both sublayers read the same `x`. The feed-forward layer comes after attention "
                "and reads the stream with attention's output in it": parallel,
            },
            name="the block's output",
        )


@checker(
    "One matrix moves every position by the same distance, so attention can learn to look 'three "
    "words back' with a linear map."
)
def check_rotation(answer):
    """Exercise 3: ``answer(steps, dim)`` is the matrix that moves sinusoidal positions."""
    for steps, dim in ((1, 2), (3, 4), (0, 4), (-2, 8)):
        table = sinusoids(30, dim)
        matrix = call(answer, steps, dim)
        require(
            isinstance(matrix, torch.Tensor) and matrix.shape == (dim, dim),
            f"for dim={dim} a matrix of shape ({dim}, {dim}) is wanted; yours has the shape "
            f"{tuple(getattr(matrix, 'shape', ()))}",
        )
        start = table[10]
        compare(
            matrix.double() @ start,
            table[10 + steps],
            name=f"the moved position (steps={steps}, dim={dim})",
            mistakes={
                "the matrix turns the other way: it moves by `-steps`. Look at the sign of the "
                "sines": table[10 - steps],
                "every pair turns by the same angle. The angle of pair i is `steps` times its "
                "own frequency": _turned(start, steps),
            },
        )
        compare(matrix.double() @ table[20], table[20 + steps], name="position 20, moved")


def _turned(start: torch.Tensor, steps: int) -> torch.Tensor:
    sine, cosine = start[0::2], start[1::2]
    angle = torch.tensor(float(steps), dtype=torch.float64)
    pairs = (
        sine * angle.cos() + cosine * angle.sin(),
        cosine * angle.cos() - sine * angle.sin(),
    )
    return torch.stack(pairs, dim=-1).flatten()


@checker("The best few are chosen among all continuations of all beams together.")
def check_beam_step(answer):
    """Exercise 4: ``answer(log_probs, next_log_probs)`` chooses the next beams."""

    def reference(log_probs, next_log_probs):
        beams, vocab = next_log_probs.shape
        total = log_probs[:, None] + next_log_probs
        best, chosen = total.flatten().topk(beams)
        return chosen // vocab, chosen % vocab, best

    def each_alone(log_probs, next_log_probs):
        best, token = (log_probs[:, None] + next_log_probs).max(dim=-1)
        order = best.argsort(descending=True)
        return order, token[order], best[order]

    def forgetful(log_probs, next_log_probs):
        beams, vocab = next_log_probs.shape
        best, chosen = next_log_probs.flatten().topk(beams)
        return chosen // vocab, chosen % vocab, best

    def swapped(log_probs, next_log_probs):
        parent, token, best = reference(log_probs, next_log_probs)
        return token, parent, best

    def multiplied(log_probs, next_log_probs):
        beams, vocab = next_log_probs.shape
        best, chosen = (log_probs[:, None] * next_log_probs).flatten().topk(beams)
        return chosen // vocab, chosen % vocab, best

    first = torch.tensor([-0.1, -3.0])
    second = torch.tensor([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]]).log()
    check_function(
        answer,
        reference,
        [(first, second), (_draw(4, seed=6) - 3, _draw(4, 9, seed=7).log_softmax(-1))],
        mistakes={
            "each beam kept one continuation of its own. A strong beam may have several among "
            "the best, and a weak one none": each_alone,
            "the log-probability of what came before is forgotten: a sequence's is the sum over "
            "all its tokens": forgetful,
            "beam and token are swapped: return (beam, token, log-probability)": swapped,
            "log-probabilities are added, not multiplied": multiplied,
        },
        name="(beams, tokens, log-probabilities)",
    )


@checker(
    "Per block that is about 12·dim²: a third in attention, two thirds in the feed-forward layer."
)
def check_parameters(answer):
    """Exercise 5: ``answer(dim, layers)`` counts the parameters of an encoder."""

    def reference(dim, layers):
        attention = 4 * dim * dim + 4 * dim
        feed_forward = 8 * dim * dim + 5 * dim
        return layers * (attention + feed_forward + 4 * dim) + 2 * dim

    check_function(
        answer,
        reference,
        [(2, 1), (64, 2), (512, 6)],
        mistakes={
            "the biases are missing: every linear layer has as many as it has outputs": (
                lambda dim, layers: layers * (12 * dim * dim + 4 * dim) + 2 * dim
            ),
            "the layer norms are missing: two a block, each with a weight and a bias of `dim` "
            "numbers, and one at the end": lambda dim, layers: layers * (12 * dim * dim + 9 * dim),
            "the last layer norm, after all blocks, is missing": (
                lambda dim, layers: layers * (12 * dim * dim + 13 * dim)
            ),
            "attention's output projection is missing: it has dim² weights and dim biases": (
                lambda dim, layers: layers * (11 * dim * dim + 12 * dim) + 2 * dim
            ),
        },
        name="the number of parameters",
    )
