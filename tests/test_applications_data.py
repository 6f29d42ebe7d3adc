"""Generated data of chapter 14: the answer keys, the ceilings, the splits; and the real pairs."""

import re

import pytest
import torch

from mmlib.data import articles as stories
from mmlib.data import chatterbot, clicks, clipart, dialogues, emoji, posts
from mmlib.metrics.rouge import rouge_n, words

POLARITY = torch.tensor([True, True, False, True, False, False])


# --- dialogues -----------------------------------------------------------------------------------


def test_the_answer_key_is_the_article_of_thing_and_intent():
    shop = dialogues.shop("test")
    asked = dialogues.questions(300, shop, "test", seed=1)
    for i in asked.answerable.nonzero().flatten().tolist():
        article = int(asked.articles[i])
        assert article // 8 == int(asked.things[i]) and article % 8 == int(asked.intents[i])
        assert shop.names[article // 8] in shop.articles[article]
        assert shop.names[article // 8] in shop.titles[article]


def test_a_picture_shows_the_thing_and_the_words_do_not_name_it():
    shop = dialogues.shop("test")
    asked = dialogues.questions(300, shop, "test", seed=2)
    drawn, pictures = clipart.load("all", 8), emoji.load("all", 8)
    for i in range(len(asked)):
        row, thing = int(asked.pictures[i]), int(asked.things[i])
        if row >= 0 and thing >= 0:
            assert drawn.concepts[row] == pictures.concepts[shop.emoji[thing]]
        if row >= 0:
            assert not re.search(rf"\b{re.escape(drawn.names[row])}\b", asked.texts[i])
    unknown = ~asked.answerable
    assert ((asked.things[unknown] == -1) & (asked.articles[unknown] == -1)).all()
    assert 0.2 < unknown.double().mean() < 0.4


def test_no_wording_is_seen_and_unseen():
    for pair in (*dialogues._WORDINGS.values(), *dialogues._VAGUE.values(), dialogues._OTHER):
        assert not set(pair[0]) & set(pair[1])
    assert not set(dialogues._POINTERS[0]) & set(dialogues._POINTERS[1])


def test_the_ceiling_is_what_the_best_rule_reaches():
    shop = dialogues.shop("train")
    asked = dialogues.questions(4000, shop, "train", "unseen", unanswerable=0.0, seed=3)
    fixed = []
    for intent, (_, unseen) in dialogues._WORDINGS.items():
        fixed += [(w, dialogues.INTENTS.index(intent)) for w in unseen]
    for both, (_, unseen) in dialogues._VAGUE.items():
        fixed += [(w, dialogues.INTENTS.index(both[0])) for w in unseen]
    forms = [(re.compile(re.escape(w).replace(r"\{\}", ".+") + "$"), j) for w, j in fixed]
    right = 0
    for text, intent in zip(asked.texts, asked.intents.tolist(), strict=True):
        answers = {j for form, j in forms if form.match(text)}
        assert len(answers) == 1, text
        right += intent in answers
    assert right / 4000 == pytest.approx(dialogues.ceiling(), abs=0.01)


def test_follow_ups_are_about_the_same_things():
    shop = dialogues.shop("test")
    first = dialogues.questions(50, shop, "test", seed=4)
    then = dialogues.follow_ups(first, "unseen", seed=5)
    assert torch.equal(then.things, first.things[first.answerable])
    assert all(re.search(r"\bit\b", text) for text in then.texts)
    assert torch.equal(then.articles, 8 * then.things + then.intents)
    with pytest.raises(ValueError, match="an answer"):
        dialogues.follow_ups(dialogues.questions(5, shop, "test", unanswerable=1.0))


# --- posts ---------------------------------------------------------------------------------------


def test_topics_are_named_in_the_sentences():
    every = posts.posts("all", POLARITY)
    for topic, word in enumerate((r"\bdvd", r"\bcamera", r"\bphone", r"\bmp3")):
        named = torch.tensor([bool(re.search(word, text)) for text in every.texts]).double()
        assert named[every.topics == topic].mean() > 3 * named[every.topics != topic].mean()
    train, test = (set(posts.posts(s, POLARITY).reviews.tolist()) for s in ("train", "test"))
    assert not train & test


def test_emoji_show_the_sentiment_as_often_as_said():
    every = posts.posts("all", POLARITY, seed=1)
    for sentiment, row in enumerate(posts.SHOWN):
        shown = every.emoji[every.sentiments == sentiment]
        kind = torch.where(shown < 0, 1, torch.where(POLARITY[shown], 2, 0))
        shares = torch.bincount(kind, minlength=3).double() / len(kind)
        torch.testing.assert_close(shares, torch.tensor(row).double(), atol=0.05, rtol=0)


def test_held_out_emoji_do_not_occur():
    among = torch.tensor([0, 2, 4])
    shown = posts.posts("test", POLARITY, among).emoji
    assert set(shown.tolist()) == {-1, 0, 2, 4}
    with pytest.raises(ValueError, match="both polarities"):
        posts.posts("test", POLARITY, torch.tensor([0, 1]))


def test_the_emoji_ceiling_is_what_the_best_rule_reaches():
    every = posts.posts("all", POLARITY, seed=2)
    kind = torch.where(every.emoji < 0, 1, torch.where(POLARITY[every.emoji], 2, 0))
    table = torch.zeros(3, 3).index_put((kind, every.sentiments), torch.ones(()), accumulate=True)
    reached = table.amax(1).sum() / len(every)
    assert float(reached) == pytest.approx(posts.emoji_ceiling(every.sentiments), abs=0.02)


def test_a_stream_changes_in_one_topic_at_one_hour():
    pool = posts.posts("test", POLARITY)
    found = posts.stream(pool, POLARITY, hours=300, rate=20.0, change=150, topic=1, seed=3)
    assert (found.hours.diff() >= 0).all() and len(found) > 20_000
    bad = (found.sentiments == 0).double()
    for topic in range(4):
        for late in (False, True):
            rows = (found.topics == topic) & ((found.hours >= 150) == late)
            wanted = 0.4 if topic == 1 and late else 0.2
            assert float(bad[rows].mean()) == pytest.approx(wanted, abs=0.03)
    known = {(t, int(k)): None for t, k in zip(pool.texts, pool.topics, strict=True)}
    assert all((t, int(k)) in known for t, k in zip(found.texts, found.topics, strict=True))


# --- clicks --------------------------------------------------------------------------------------


def test_nothing_is_clicked_twice_and_history_is_warm():
    every = clicks.items()
    made = clicks.clicks(200, every, seed=1)
    assert every.warm[made.history].all()
    row = torch.cat([made.history, made.target[:, None]], 1).sort(1).values
    assert (row.diff(dim=1) > 0).all()
    assert (~every.warm[made.target]).any()
    assert every.warm[clicks.clicks(200, every, cold=False, seed=1).target].all()


def test_the_posterior_is_that_of_the_process():
    """Against a direct sum over the tastes, click by click, in a world of twelve items."""
    draw = torch.Generator().manual_seed(0)
    small = clicks.Items(
        names=("x",) * 12,
        warm=torch.arange(12) < 9,
        categories=torch.arange(12) % 3,
        colours=torch.randint(6, (12,), generator=draw),
        quality=torch.randn(12, generator=draw),
    )
    history = torch.tensor([[0, 3, 4], [8, 1, 2]])
    scores = clicks.bayes_scores(small, history)
    for row, seen in zip(scores, history.tolist(), strict=True):
        total, weight = torch.zeros(12, dtype=torch.float64), 0.0
        for taste in clicks._tastes(3):
            utility = clicks._utility(small, taste[None])[0]
            likelihood, left = 1.0, set(range(9))
            for item in seen:
                mass = sum(float(utility[j].exp()) for j in left)
                likelihood *= float(utility[item].exp()) / mass
                left -= {item}
            blind = utility.clone()
            blind[9:] += clicks._GAMMA**2 / 2 - clicks._GAMMA * small.quality[9:].double()
            total += likelihood * blind.softmax(0)
            weight += likelihood
        expected = total / weight
        expected[seen] = 0
        torch.testing.assert_close(row, expected)


def test_colours_are_those_of_the_pixels():
    paint = {"red": (200, 20, 20), "yellow": (230, 210, 20), "green": (20, 160, 40),
             "blue": (20, 40, 200), "dark": (40, 40, 40), "light": (190, 190, 190)}  # fmt: skip
    images = torch.full((6, 3, 8, 8), 255, dtype=torch.uint8)
    for image, colour in zip(images, paint.values(), strict=True):
        image[:, 2:6, 2:6] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    assert [clicks.COLOURS[i] for i in clicks._colours(images)] == list(paint)


# --- articles ------------------------------------------------------------------------------------


def test_an_article_is_about_two_things_and_the_editor_kept_them():
    drawn = clipart.load("all", 8)
    for article in stories.articles(20, "test", seed=1):
        shown = list(zip(article.pictures, article.chosen, strict=True))
        main = {drawn.concepts[i] for i, kept in shown if kept}
        other = {drawn.concepts[i] for i, kept in shown if not kept}
        assert len(main) == 2 and not main & other
        assert 4 <= sum(article.about) <= 6
        # The editor's words are others, the facts are the same.
        assert not any(s in article.reference for s in article.sentences)


def test_no_thing_is_in_both_splits():
    drawn = clipart.load("all", 8)
    seen, held = (
        {drawn.concepts[i] for a in stories.articles(40, s) for i in a.pictures}
        for s in ("train", "test")
    )
    assert not seen & held


def test_the_best_three_is_above_the_informed_and_any_other():
    for article in stories.articles(6, seed=2):

        def score(text, reference=article.reference):
            return rouge_n(words(text), words(reference), 1).f

        best = stories.best_three(article, score)
        assert best >= stories.informed_three(article, score)
        assert best >= score(" ".join(article.sentences[:3]))


# --- real pairs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("language", "least"), [("en", 700), ("zh", 400)])
def test_pairs_are_split_by_topic(language, least):
    train, test, every = (
        chatterbot.load(s, language, progress=False) for s in ("train", "test", "all")
    )
    assert len(train) + len(test) == len(every) > least
    assert not set(train.topics) & set(test.topics)
    assert set(test.topics) == set(chatterbot.HELD_OUT)
    assert all(q.strip() and r.strip() for q, r in zip(every.questions, every.replies, strict=True))
    chinese = sum(bool(re.search(r"[\u4e00-\u9fff]", q)) for q in every.questions)
    assert chinese > 0.9 * len(every) if language == "zh" else chinese == 0


def test_quotes_long_lines_and_short_conversations():
    text = """categories:
- x
conversations:
- - "say \\"hi\\""
  - one
    two
- - alone
- - a
  - 'b''c'
  - d
"""
    assert chatterbot.read_conversations(text) == [['say "hi"', "one two"], ["a", "b'c", "d"]]


# --- what they refuse ----------------------------------------------------------------------------


def asked(count, *rest, **options):
    return dialogues.questions(count, dialogues.shop("test"), "test", *rest, **options)


def streamed(**options):
    return posts.stream(posts.posts("test", POLARITY), POLARITY, **options)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f: dialogues.shop("all"), ValueError, "split"),
        (lambda f: asked(0), ValueError, "count"),
        (lambda f: asked(1, "new"), ValueError, "wordings"),
        (lambda f: asked(1, pictured=2.0), ValueError, "pictured"),
        (lambda f: f(posts.posts)("test", torch.tensor([0, 1])), TypeError, "boolean"),
        (lambda f: posts.posts("dev", POLARITY), ValueError, "split"),
        (lambda f: posts.emoji_ceiling(torch.tensor([], dtype=torch.int64)), ValueError, "empty"),
        (lambda f: streamed(hours=0), ValueError, "hours"),
        (lambda f: streamed(rate=0.0), ValueError, "rate"),
        (lambda f: streamed(topic=9), ValueError, "topic"),
        (lambda f: streamed(shares=(0.5, 0.6, 0.1)), ValueError, "shares"),
        (lambda f: clicks.clicks(0, clicks.items()), ValueError, "count"),
        (lambda f: clicks.clicks(1, clicks.items(), 5000), ValueError, "length"),
        (lambda f: stories.articles(0), ValueError, "count"),
        (lambda f: stories.articles(1, "all"), ValueError, "split"),
        (lambda f: chatterbot.load("dev"), ValueError, "split"),
        (lambda f: chatterbot.load("all", "fr"), ValueError, "language"),
    ],
)  # fmt: skip
def test_bad_input_is_named(unchecked, call, error, match):
    with pytest.raises(error, match=match):
        call(unchecked)
