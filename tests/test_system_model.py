"""The multimodal language model: sequence, masks, loss, cache, packing, bad input.

- Documents list their tokens, places and what is wanted; rows list what tells it.
- No token sees a later one, nor one of another document, by gradients.
- A hidden code is seen by none of the later tokens; padding by none.
- Packed equals separate; padded left equals padded right; cached equals uncached.
- The loss by hand; gradients of two halves are those of the whole; nothing wanted gives zeros.
- Regions reach the right picture; a picture that is shown changes what follows it.
- Guidance by hand; what is drawn under temperature 0 is the most probable, step by step.
"""

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from mmlib.sampling import guide
from mmlib.system.model import LanguageConfig, MultimodalLM
from mmlib.system.sequence import CODE, REGION, WORD, Document, Rows, pack, pad
from mmlib.system.words import Marker, Words
from mmlib.system.writing import paint, reply, write
from mmlib.training.step_cost import step_cost

WORDS, CODES, FEATURES, REGIONS, PLACES = 17, 11, 6, 4, 9
SHAPE = (REGIONS, FEATURES)
SIZES = {"words": WORDS, "length": 24, "feature_dim": FEATURES, "region_side": 2, "code_side": 3}


class Known(Words):
    """Stands in for the words: the last six numbers are markers."""

    pad, begin, end = 0, 1, 2

    def __init__(self):
        pass

    def marker(self, marker):
        return WORDS - len(Marker) + int(marker)

    def decode(self, ids):
        return " ".join(str(i) for i in ids if i < WORDS - len(Marker))


DRAW = Known().marker(Marker.DRAW)


def small(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    config = LanguageConfig(**SIZES | {"dim": 24, "heads": 3, "layers": 2} | changes)
    model = MultimodalLM(config, torch.randn(CODES, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def picture(seed):
    shape = (REGIONS, FEATURES)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def documents():
    """A caption, a drawing with hidden codes, a dialogue that looks and then draws, a short one."""
    codes = torch.randint(CODES, (2, PLACES), generator=torch.Generator().manual_seed(1)).tolist()
    hidden = [False, True, False, True, False, False, True, False, True]
    return [
        Document().words([1, 11]).regions(picture(1)).words([3, 4, 2], wanted=True),
        Document().words([1]).words([5, 6, DRAW], wanted=True).codes(codes[0], hidden=hidden),
        Document()
        .words([1])
        .regions(picture(2))
        .words([7, 8])
        .words([9, 2], wanted=True)
        .words([4])
        .codes(codes[1])
        .words([2], wanted=True),
        Document().words([1]).words([3], wanted=True),
    ]


def packed(length=24):
    return pack(documents(), 0, length, shape=SHAPE)


def padded(**options):
    return pad(documents(), 0, shape=SHAPE, **options)


def by_document(model, rows):
    """What is known after each token, document by document."""
    known = model(rows)
    return [known[rows.document == number] for number in range(len(documents()))]


def test_a_document_lists_its_tokens():
    found = documents()[2]
    assert found.kinds == [WORD, *[REGION] * 4, *[WORD] * 5, *[CODE] * PLACES, WORD]
    assert found.places == [0, *range(4), 1, 2, 3, 4, 5, *range(PLACES), 6]
    assert [at for at, wanted in enumerate(found.wanted) if wanted] == [7, 8, *range(10, 20)]
    other = found.copy().words([3])
    assert (len(found), len(other)) == (20, 21)


@pytest.mark.parametrize("rows", [padded(), padded(left=True), packed(), packed(40)])
def test_what_is_wanted_is_told_by_the_token_before_it(rows):
    kinds, ids, owner = rows.kinds.flatten(), rows.ids.flatten(), rows.document.flatten()
    for kind, source, target in (
        (WORD, rows.from_words, rows.to_words),
        (CODE, rows.from_codes, rows.to_codes),
    ):
        assert len(source) == len(target)
        assert torch.equal(ids[source + 1], target)
        assert (kinds[source + 1] == kind).all()
        assert torch.equal(owner[source], owner[source + 1])
    assert len(rows.to_words) == sum(
        sum(w for w, k in zip(d.wanted, d.kinds, strict=True) if k == WORD) for d in documents()
    )
    assert len(rows.to_codes) == 2 * PLACES


def test_packing_saves_rows():
    assert packed().ids.shape == (2, 24)
    assert packed(64).ids.shape == (1, 64)
    assert packed(40).ids.shape == (2, 40)
    assert pack(documents(), 0, 40, rows=5, shape=SHAPE).ids.shape == (5, 40)


@pytest.mark.parametrize("rows", [padded(left=True), packed(), packed(40), packed(64)])
def test_packed_and_padded_in_front_equal_separate(rows):
    model = small()
    for found, alone in zip(by_document(model, rows), documents(), strict=True):
        one = model(pad([alone], 0, shape=SHAPE))[0]
        torch.testing.assert_close(found, one)


def test_the_packed_loss_is_the_padded_loss():
    model = small()
    for one, other in zip(model.loss(packed(40)), model.loss(padded()), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rows", [padded(), padded(left=True), packed(40)])
def test_gradients_come_from_the_same_document_and_not_from_later_tokens(rows):
    model = small()
    stream = model._embed(rows).detach().requires_grad_()
    model._embed = lambda rows: stream
    known, owner = model(rows), rows.document
    for row, at in ((r, t) for r in range(len(owner)) for t in range(0, owner.shape[1], 3)):
        (gradient,) = torch.autograd.grad(known[row, at].sum(), stream, retain_graph=True)
        reached = gradient.abs().sum(-1) > 0
        allowed = (owner == owner[row, at]) & (owner >= 0)
        allowed[torch.arange(len(owner)) != row] = False
        allowed[row, at + 1 :] = False
        allowed[row, at] = True  # itself, past attention
        if owner[row, at] >= 0:
            assert torch.equal(reached, allowed)
        else:
            assert not (reached & ~allowed).any()


def test_hidden_codes_are_seen_by_none():
    model, document = small(), documents()[1]
    before = model(pad([document], 0, shape=SHAPE))
    for place in range(PLACES):
        other = document.copy()
        at = len(other) - PLACES + place
        other.ids[at] = (other.ids[at] + 1) % CODES
        same = torch.equal(model(pad([other], 0, shape=SHAPE)), before)
        assert same == document.hidden[at]


def test_regions_are_those_of_their_picture():
    model = small()
    before = by_document(model, packed(40))
    for number, owner in ((0, 0), (1, 2)):
        rows = packed(40)
        order = [i for document in documents() for i in document.looked_at]
        assert torch.equal(rows.features[number], order[number])
        features = rows.features.clone()
        features[number] += 1.0 + torch.arange(FEATURES)
        after = by_document(model, rows._replace(features=features))
        changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
        assert changed == [i == owner for i in range(4)]


def test_the_loss_by_hand():
    model, rows = small(code_weight=0.25), packed()
    known = model(rows)
    total, count = 0.0, 0.0
    for source, target, head, weight in (
        (rows.from_words, rows.to_words, model.tell, 1.0),
        (rows.from_codes, rows.to_codes, model.paint, 0.25),
    ):
        for at, wanted in zip(source.tolist(), target.tolist(), strict=True):
            row, column = divmod(at, rows.ids.shape[1])
            logits = head(known[row, column]).tolist()
            top = max(logits)
            partition = top + math.log(sum(math.exp(x - top) for x in logits))
            total, count = total + weight * (partition - logits[wanted]), count + weight
    found = model.loss(rows)
    assert float(found[0].detach()) == pytest.approx(total)
    assert float(found[1]) == pytest.approx(count) == 10 + 0.25 * 18


def test_gradients_of_two_halves_are_those_of_the_whole():
    model = small()

    def gradients(parts):
        model.zero_grad()
        pairs = [model.loss(pad(part, 0, shape=SHAPE)) for part in parts]
        (sum(s for s, _ in pairs) / sum(c for _, c in pairs)).backward()
        return [p.grad.clone() for p in model.parameters()]

    whole, halves = gradients([documents()]), gradients([documents()[:1], documents()[1:]])
    for one, other in zip(whole, halves, strict=True):
        torch.testing.assert_close(one, other)
    uneven = [model.loss(pad(part, 0, shape=SHAPE)) for part in (documents()[:1], documents()[1:])]
    mean_of_means = sum(s / c for s, c in uneven) / 2
    total, count = model.loss(padded())
    assert abs(float(mean_of_means - total / count)) > 0.01  # the test can fail


def test_every_parameter_learns_even_where_nothing_is_wanted():
    model = small()
    total, count = model.loss(pad([Document().words([1, 3])], 0, shape=SHAPE))
    total.backward()
    assert float(total) == float(count) == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def prompts():
    return [
        Document().words([1, 11]).regions(picture(3)).words([4]),
        Document().words([1, 3]),
        Document().words([1, 5, 6, 3]),
    ]


def test_cached_writing_is_that_of_the_whole_sequence():
    model = small()
    cached = write(model, Known(), prompts(), most=9)
    assert cached == write(model, Known(), prompts(), most=9, use_cache=False)
    alone = [write(model, Known(), [prompt], most=9)[0] for prompt in prompts()]
    assert cached == alone
    assert len(set(map(tuple, cached))) > 1


def test_writing_takes_the_most_probable_word_until_the_end():
    model = small()
    for prompt, text in zip(prompts(), write(model, Known(), prompts(), most=9), strict=True):
        grown, told = prompt.copy(), []
        while len(told) < 9:
            best = int(model.tell(model(pad([grown], 0, shape=SHAPE))[0, -1]).argmax())
            if best == Known.end:
                break
            told.append(best)
            grown.words([best])
            if best == DRAW:
                break
        assert text == told


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_painting_is_guided_step_by_step(guidance):
    model, asked = small(), [p.copy().words([DRAW]) for p in prompts()]
    found = paint(model, Known(), asked, guidance=guidance, temperature=0)
    assert found.shape == (3, 3, 3)
    slow = paint(model, Known(), asked, guidance=guidance, temperature=0, use_cache=False)
    assert torch.equal(found, slow)
    nothing = Document().words([1, DRAW])
    for prompt, codes in zip(asked, found.flatten(1).tolist(), strict=True):
        for place in range(PLACES):
            logits = [
                model.paint(model(pad([d.copy().codes(codes[:place])], 0, shape=SHAPE))[:, -1])
                for d in (prompt, nothing)
            ]
            assert int(guide(*logits, guidance).argmax()) == codes[place]


def test_painting_draws_from_the_generator():
    model, asked = small(), [Document().words([1, DRAW])]
    draws = [
        paint(model, Known(), asked, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_reply_draws_where_the_model_says_so():
    model = small()
    with torch.no_grad():  # says 5, then draws, whatever is asked
        model.word_head.weight.zero_()
        model.word_head.bias.fill_(-9.0)
        model.word_head.bias[DRAW] = 9.0
    replies = reply(model, Known(), prompts(), most=4)
    assert [r.text for r in replies] == [""] * 3
    assert all(r.codes.shape == (3, 3) for r in replies)
    with torch.no_grad():
        model.word_head.bias[Known.end] = 99.0
    assert reply(model, Known(), prompts(), most=4)[0] == ("", None)


def test_the_mode_is_put_back_and_inputs_stay():
    model = small(dropout=0.5).train()
    asked = [p.copy().words([DRAW]) for p in prompts()]
    before = copy.deepcopy(asked)
    reply(model, Known(), asked, most=2)
    paint(model, Known(), asked)
    assert model.training
    for one, other in zip(asked, before, strict=True):
        assert (one.ids, one.kinds) == (other.ids, other.kinds)


def test_a_step_can_be_costed():
    like = [(part.shape, part.dtype) for part in packed(40)]

    def make_rows():
        return Rows(*(torch.zeros(shape, dtype=dtype) for shape, dtype in like))

    config = LanguageConfig(**SIZES | {"dim": 24, "heads": 3, "layers": 2})
    cost = step_cost(
        lambda: MultimodalLM(config, torch.zeros(CODES, 5)),
        make_rows,
        lambda model, rows: model.loss(rows),
    )
    assert cost.parameters == sum(p.numel() for p in small().parameters())
    # Blocks: 12 d² weights a layer, 2 operations each, thrice for the backward pass.
    assert cost.flops > 3 * 2 * 12 * 24**2 * 2 * 80


def test_the_loss_learns_a_picture_and_its_caption():
    model = small(torch.float32).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    rows = packed()
    rows = rows._replace(features=rows.features.float())
    for _ in range(60):
        total, count = model.loss(rows)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert float(total / count) < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": 0}, "words must be at least 1"),
        ({"code_weight": 0}, "code_weight must be above 0"),
        ({"heads": 5}, "heads must divide dim"),
        ({"region_side": 0}, "region_side must be at least 1"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        LanguageConfig(**SIZES | {"dim": 24, "heads": 3} | changes)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document().words([WORDS]), "ids of words must lie from 0 to 16: got 17"),
        (Document().words([1] * 25), "places of words must lie from 0 to 23"),
        (Document().codes([CODES]), "ids of codes must lie from 0 to 10"),
        (Document().codes([1] * 10), "places of codes must lie from 0 to 8"),
        (Document().regions(torch.zeros(3, FEATURES)), "features must have shape"),
    ],
)
def test_tokens_that_cannot_be(document, message):
    document.wanted = [False] * len(document)
    with pytest.raises(ValueError, match=message):
        small()(pad([document], 0, shape=SHAPE))


def test_rows_and_prompts_that_cannot_be():
    for bad in ([], [Document()], [Document().words([1] * 5)]):
        with pytest.raises(ValueError, match="documents must have from 1 to length=4"):
            pad(bad, 0, length=4)
    with pytest.raises(ValueError, match="documents must not be empty"):
        pack([], 0, 4)
    with pytest.raises(ValueError, match="rows must be at least 2"):
        pack(documents(), 0, 24, rows=1)
    with pytest.raises(ValueError, match="must not want their first token"):
        pad([Document().words([1], wanted=True)], 0)
    model, known = small(), Known()
    for most in (0, 21):
        with pytest.raises(ValueError, match="most must be from 1 to 20"):
            inspect.unwrap(write)(model, known, prompts(), most=most)
    with pytest.raises(ValueError, match="prompts must end with the marker"):
        inspect.unwrap(paint)(model, known, prompts())
    with pytest.raises(ValueError, match="guidance must be finite"):
        inspect.unwrap(paint)(model, known, prompts(), guidance=math.inf)


def test_nats_are_those_of_torch():
    model, rows = small(), padded()
    words, codes = model.losses(rows)
    known = model(rows).flatten(0, 1)
    logits = model.tell(known)[rows.from_words]
    torch.testing.assert_close(words, F.cross_entropy(logits, rows.to_words, reduction="none"))
    assert len(codes) == 18
