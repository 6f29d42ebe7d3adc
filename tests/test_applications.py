"""The four small systems: what they pick, when they are silent, when they raise an alarm."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F

from mmlib.applications import assistant as desk
from mmlib.applications.assistant import UNKNOWN, Assistant, Dialogue
from mmlib.applications.monitor import (
    Cusum,
    Monitor,
    first_alarm,
    mean_run_length,
    rolling_share,
    window_count,
)
from mmlib.applications.recommender import (
    Recommender,
    components,
    popularity,
    target_ranks,
    train,
)
from mmlib.applications.replies import (
    TfIdf,
    choose_penalty,
    nearest_reply,
    ridge_map,
    same_question,
    terms,
)
from mmlib.applications.summary import page_rank, pick, summarise
from mmlib.data import clipart, dialogues
from mmlib.data.posts import SHOWN, Posts

# --- the assistant -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """An assistant of the test shop, the drawings that its questions show, and some questions."""
    shop = dialogues.shop("test")
    helper = Assistant(shop)
    asked = dialogues.questions(300, shop, "test", "seen", seed=1)
    drawn = clipart.load("all", 128).images
    places = asked.pictures[asked.pictures >= 0].unique()
    drawings = torch.zeros(len(drawn), 384)
    drawings[places] = helper.picture_vectors(drawn[places])
    return helper.fit(asked, drawings, penalty=0.1), drawings, asked


def test_most_questions_in_words_find_their_article(fitted):
    helper, _, asked = fitted
    rows = (asked.answerable & (asked.pictures < 0)).nonzero().flatten().tolist()
    found = helper.answers([asked.texts[i] for i in rows])
    assert (found.articles == asked.articles[rows]).double().mean() > 0.5
    assert torch.equal(found.articles, 8 * found.things + found.intents)


def test_confidence_tells_questions_without_an_answer(fitted):
    helper, drawings, asked = fitted
    sure = helper.answers(asked.texts, asked.pictures, drawings).confidence
    assert sure[asked.answerable].mean() > sure[~asked.answerable].mean() + 0.1
    assert ((sure >= 0) & (sure <= 1)).all()


def test_a_picture_is_looked_at(fitted):
    helper, drawings, asked = fitted
    rows = (asked.answerable & (asked.pictures >= 0)).nonzero().flatten()
    texts = ["how much is this?"] * len(rows)
    found = helper.answers(texts, asked.pictures[rows], drawings)
    assert len(found.things.unique()) > 5  # the words are the same everywhere
    assert (found.things == asked.things[rows]).double().mean() > 4 / len(helper.shop)


def test_one_question_is_answered_as_in_a_batch(fitted):
    helper, drawings, asked = fitted
    every = helper.answers(asked.texts[:6], asked.pictures[:6], drawings)
    for i in range(6):
        one = helper.answers([asked.texts[i]], asked.pictures[i : i + 1], drawings)
        assert int(one.articles) == int(every.articles[i])
        torch.testing.assert_close(one.confidence[0], every.confidence[i], atol=1e-4, rtol=1e-4)


def test_another_shop_needs_no_training(fitted):
    helper, *_ = fitted
    shop = dialogues.shop("test", seed=3)
    other = helper.with_shop(shop)
    name = shop.names[0]
    found = other.answers([f"how much is the {name}?"])
    assert shop.articles[int(found.articles)].startswith(f"The {name} costs")
    assert helper.shop is not shop


def test_a_dialogue_remembers_the_thing_and_keeps_a_log(fitted):
    helper, *_ = fitted
    name = helper.shop.names[7]
    talk = Dialogue(helper, threshold=0.0)
    first = talk.ask(f"how much is the {name}?")
    second = talk.ask("how long is the warranty of it?")
    assert name in first.text and name in second.text and "months" in second.text
    lines = [json.loads(line) for line in talk.log_lines().splitlines()]
    assert [line["from_memory"] for line in lines] == [False, True]
    assert lines[1]["intent"] == "warranty" and lines[1]["thing"] == name


def test_a_dialogue_is_silent_below_its_threshold(fitted):
    helper, *_ = fitted
    talk = Dialogue(helper, threshold=1.0)
    reply = talk.ask("how much is the giraffe?")
    assert reply.text == UNKNOWN and reply.article == -1
    # What was not answered is not remembered.
    assert not talk.ask("how big is it?").article >= 0
    assert [turn["from_memory"] for turn in talk.log] == [False, False]


def test_a_picture_in_a_dialogue_is_a_picture_of_the_batch(fitted):
    helper, drawings, asked = fitted
    row = int((asked.pictures >= 0).nonzero()[0])
    picture = clipart.load("all", 128).images[asked.pictures[row]]
    reply = Dialogue(helper, 0.0).ask(asked.texts[row], picture)
    found = helper.answers([asked.texts[row]], asked.pictures[row : row + 1], drawings)
    assert reply.article == int(found.articles)


def test_the_assistant_refuses(fitted, unchecked):
    helper, drawings, asked = fitted
    with pytest.raises(ValueError, match="at least one"):
        unchecked(Assistant.answers)(helper, [])
    with pytest.raises(ValueError, match="at least one"):
        unchecked(Assistant.answers)(helper, "hello")
    with pytest.raises(ValueError, match="shape"):
        unchecked(Assistant.answers)(helper, ["a", "b"], torch.tensor([1]))
    with pytest.raises(ValueError, match="rows of drawings"):
        helper.answers(["this?"], torch.tensor([3]))
    few = dialogues.questions(5, helper.shop, "test")
    with pytest.raises(ValueError, match="at least 20"):
        helper.fit(few, drawings)
    with pytest.raises(ValueError, match="threshold"):
        Dialogue(helper, 1.5)
    with pytest.raises(ValueError, match="empty"):
        Dialogue(helper).ask("  ")
    with pytest.raises(TypeError, match="string"):
        unchecked(Dialogue.ask)(Dialogue(helper), 3)
    empty = copy.copy(helper)
    empty._intent = None
    with pytest.raises(RuntimeError, match="fit"):
        empty.answers(["hello"])


def test_the_pronoun_is_a_word():
    assert desk._PRONOUN.search("how big is it?")
    assert not desk._PRONOUN.search("is there a kit?")


# --- replies -------------------------------------------------------------------------------------


def test_chinese_is_counted_in_characters_and_pairs():
    assert terms("你好吗, ok", "zh") == ["你", "好", "吗", "o", "k", "你好", "好吗", "ok"]
    with pytest.raises(ValueError, match="language"):
        terms("hallo", "de")


def test_a_rare_word_weighs_more():
    texts = ["the cat", "the dog", "the bird", "the cat"]
    vectors = TfIdf(texts)
    a, b = vectors(["the bird"])[0].topk(2).values
    assert a > b > 0
    torch.testing.assert_close(vectors(texts).norm(dim=1), torch.ones(4))
    assert vectors(["unheard of"]).abs().sum() == 0
    with pytest.raises(ValueError, match="at least one term"):
        TfIdf(["...", "?"])


def test_the_ridge_map_learns_where_replies_lie_and_else_stands_still():
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(200, 6, generator=draw)
    turn = torch.randn(6, 6, generator=draw)
    torch.testing.assert_close(q @ ridge_map(q, q @ turn, 1e-6), q @ turn, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ridge_map(q, q @ turn, 1e12), torch.eye(6), atol=1e-5, rtol=0)


def test_the_penalty_is_chosen_on_topics_that_were_left_out():
    """One direction carries from topic to topic, or none does: then the map must stand still."""
    draw = torch.Generator().manual_seed(0)
    q = F.normalize(torch.randn(60, 8, generator=draw), dim=1)
    topics = [f"topic {i % 4}" for i in range(60)]
    turn = torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q
    assert choose_penalty(q, q @ turn, torch.eye(60) > 0, topics, (0.01, 100.0)) == 0.01
    # Each topic turns its questions in a way of its own: what is learned on it fits no other.
    own = [torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q for _ in range(4)]
    r = torch.stack([0.9 * q[i] + 1.5 * q[i] @ own[i % 4] for i in range(60)])
    assert choose_penalty(q, r, torch.eye(60) > 0, topics, (0.01, 100.0)) == 100.0


@pytest.mark.parametrize(
    ("rows", "topics", "penalties", "match"),
    [
        (4, ["a", "b", "a"], (1.0,), "topics"),
        (4, ["a"] * 4, (1.0,), "two topics"),
        (4, ["a", "b", "a", "b"], (), "penalties"),
        (3, ["a", "b", "a", "b"], (1.0,), "own"),
    ],
)
def test_the_penalty_is_not_chosen(unchecked, rows, topics, penalties, match):
    q, own = torch.randn(4, 2), torch.eye(4)[:rows] > 0
    with pytest.raises(ValueError, match=match):
        unchecked(choose_penalty)(q, q, own, topics, penalties)


@pytest.mark.parametrize(
    ("q", "r", "penalty", "match"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), 1.0, "one shape"),
        (torch.zeros(3), torch.zeros(3), 1.0, "one shape"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 0.0, "above 0"),
    ],
)
def test_the_ridge_map_refuses(unchecked, q, r, penalty, match):
    with pytest.raises(ValueError, match=match):
        unchecked(ridge_map)(q, r, penalty)


def test_the_nearest_question_gives_its_reply(unchecked):
    known = torch.eye(3)
    score, place = nearest_reply(torch.tensor([[0.0, 0.6, 0.8]]), known)
    assert (round(float(score), 4), int(place)) == (0.8, 2)
    allowed = torch.tensor([[True, True, False]])
    assert int(nearest_reply(torch.tensor([[0.0, 0.6, 0.8]]), known, allowed)[1]) == 1
    with pytest.raises(ValueError, match="a pair"):
        nearest_reply(torch.ones(1, 3), known, torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="width"):
        unchecked(nearest_reply)(torch.ones(1, 2), known)


def test_questions_are_the_same_whatever_their_case_and_punctuation():
    same = same_question(["Do you eat", "do  you eat?", "who do you eat"])
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


# --- the monitor ---------------------------------------------------------------------------------


def test_cusum_is_the_log_likelihood_ratio_since_its_low_point():
    before, after = 0.3, 0.7  # the two steps are equal, so that nothing is rounded
    cusum = Cusum(before, after)
    up, down = math.log(after / before), math.log((1 - before) / (1 - after))
    x = (torch.rand(5, 300, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    ratio = torch.where(x > 0, up, -down).double().cumsum(1)
    lowest = ratio.cummin(1).values.clamp(max=0)
    torch.testing.assert_close((ratio - lowest) / down, cusum(x).double(), atol=1e-4, rtol=0)
    assert Cusum(0.2, 0.5).gain == 3 and Cusum(0.05, 0.1).gain == 14


def test_mean_run_length_is_what_simulation_gives():
    gain, limit, share = 4, 7, 0.3
    draw = torch.Generator().manual_seed(0)
    x = (torch.rand(4000, 400, generator=draw) < share).long()
    state, steps = torch.zeros(4000, dtype=torch.int64), torch.zeros(4000)
    for t in x.unbind(1):
        going = state < limit
        steps += going
        state = torch.where(going, (state + gain * t - 1).clamp(min=0), state)
    assert (state >= limit).all()
    # The standard error of the mean is a hundredth of it.
    assert float(steps.mean()) == pytest.approx(mean_run_length(gain, limit, share), rel=0.05)


def test_the_first_alarm_counts_posts_from_one():
    statistic = torch.tensor([[5, 0, 9], [0, 0, 5], [0, 4, 4]])
    assert first_alarm(statistic, 5).tolist() == [1, 3, -1]


def test_window_count_forgets():
    x = torch.tensor([[1, 1, 0, 0, 1, 0]])
    assert window_count(x, 3).tolist() == [[1, 2, 2, 1, 1, 1]]
    assert window_count(x, 99).tolist() == [[1, 2, 2, 2, 3, 3]]
    share, low, high = rolling_share(x, 3)
    assert share[0, 3] == pytest.approx(1 / 3)
    assert (low <= share + 1e-12).all() and (share <= high + 1e-12).all()
    assert (low >= -1e-12).all() and (high <= 1 + 1e-12).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Cusum(0.5, 0.2), "before < after"),
        (lambda: Cusum(0.0, 0.2), "before < after"),
        (lambda: Cusum(0.2, 0.5)(torch.tensor([[0, 2]])), "zeros and ones"),
        (lambda: Cusum(0.2, 0.5)(torch.tensor([0, 1])), "zeros and ones"),
        (lambda: mean_run_length(1, 5, 0.2), "gain"),
        (lambda: mean_run_length(3, 0, 0.2), "limit"),
        (lambda: mean_run_length(3, 5, 0.0), "share"),
        (lambda: mean_run_length(3, 5, 0.5, 2.0), "calm"),
        (lambda: window_count(torch.tensor([[0, 1]]), 0), "window"),
        (lambda: Monitor("sound"), "use"),
        (lambda: Monitor(penalty=0.0), "penalty"),
    ],
)
def test_the_monitor_refuses(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def made_posts(count, generator):
    """Posts whose words tell the topic and half of the sentiment, whose emoji the other half."""
    topics = torch.randint(4, (count,), generator=generator)
    sentiments = torch.randint(3, (count,), generator=generator)
    shown = torch.multinomial(torch.tensor(SHOWN)[sentiments], 1, generator=generator)[:, 0]
    emoji = torch.tensor([0, -1, 1])[shown]
    sentences = F.one_hot(topics, 8).float()
    sentences[:, 4] = (sentiments == 0) * (torch.rand(count, generator=generator) < 0.5)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Posts(("x",) * count, emoji, topics, sentiments, zeros, zeros), sentences


def test_two_witnesses_read_better_than_one():
    draw = torch.Generator().manual_seed(0)
    train_on, sentences = made_posts(600, draw)
    test_on, unseen = made_posts(600, draw)
    pictures = torch.eye(2)
    right = {}
    for use in ("text", "emoji", "both"):
        reading = (
            Monitor(use, 0.1).fit(train_on, sentences, pictures).read(test_on, unseen, pictures)
        )
        assert torch.equal(reading.topics, test_on.topics)
        assert torch.equal(reading.complaints, reading.sentiments == 0)
        right[use] = (reading.sentiments == test_on.sentiments).double().mean()
    assert right["both"] > max(right["text"], right["emoji"]) + 0.02
    # Whether there is an emoji, and not which, would be right in (0.6 + 0.7) / 3 of the posts.
    assert right["emoji"] > 0.5
    with pytest.raises(RuntimeError, match="fit"):
        Monitor().read(test_on, unseen, pictures)
    with pytest.raises(ValueError, match="600 posts"):
        Monitor().fit(train_on, sentences[:5], pictures)
    with pytest.raises(ValueError, match="emoji 1"):
        Monitor().fit(train_on, sentences, pictures[:1])


# --- the recommender -----------------------------------------------------------------------------


def taste(people, seed):
    """Two kinds of items, 10 each, of which the last three are cold; everybody likes one kind."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(2, (people,), generator=draw)
    order = torch.rand(people, 7, generator=draw).argsort(1)[:, :5]
    return kind, order + 10 * kind[:, None]


WARM = torch.arange(20) % 10 < 7
FEATURES = F.one_hot(torch.arange(20) // 10, 2).float()


def test_the_recommender_learns_taste_and_knows_cold_items_by_their_features():
    _, clicks = taste(400, 0)
    model = Recommender(FEATURES, WARM, dim=8)
    losses = train(model, clicks, steps=120, batch=64, learning_rate=1e-2)
    assert len(losses) == 120 and losses[-1] < losses[0] - 0.4
    kind, seen = taste(200, 1)
    with torch.no_grad():
        scores = model(seen, torch.ones_like(seen, dtype=torch.bool))
    cold = (~WARM).nonzero().flatten()
    liked = scores[:, cold].argmax(1) >= 3
    assert (liked == (kind == 1)).all()
    own = scores.masked_fill(~WARM, -torch.inf).argmax(1) >= 10
    assert (own == (kind == 1)).double().mean() > 0.95


def test_without_features_all_cold_items_are_alike():
    model = Recommender(None, WARM, dim=8).eval()
    vectors, bias = model.items()
    assert torch.equal(vectors[7], vectors[18]) and bias[7] == bias[18]
    assert not torch.equal(vectors[0], vectors[1])


def test_clicks_that_do_not_count_change_nothing():
    model = Recommender(FEATURES, WARM, dim=8).eval()
    keep = torch.tensor([[True, True, False]])
    with torch.no_grad():
        a = model(torch.tensor([[1, 2, 3]]), keep)
        b = model(torch.tensor([[1, 2, 15]]), keep)
    assert torch.equal(a, b)


def test_target_ranks_leave_out_the_history_and_count_ties_against_us():
    scores = torch.tensor([[9.0, 5.0, 7.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    history, target = torch.tensor([[0], [3]]), torch.tensor([1, 0])
    assert target_ranks(scores, history, target).tolist() == [3, 3]
    hopeless = torch.tensor([[-torch.inf, -torch.inf, 1.0]])
    assert target_ranks(hopeless, torch.tensor([[0]]), torch.tensor([1])).tolist() == [2]


def test_popularity_is_the_same_for_everybody():
    assert popularity(torch.tensor([[0, 1], [1, 3]]), 5).tolist() == [1, 2, 0, 1, 0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Recommender(FEATURES, WARM, dim=0), "dim"),
        (lambda: components(FEATURES, WARM, 3), "count"),
        (lambda: components(FEATURES, WARM, 0), "count"),
        (lambda: Recommender(FEATURES, WARM, dropout=1.0), "dropout"),
        (lambda: train(Recommender(FEATURES, WARM), torch.zeros(3, 1, dtype=torch.int64)), "two"),
        (lambda: train(Recommender(FEATURES, WARM), torch.tensor([[0, 8]])), "warm"),
        (lambda: target_ranks(torch.ones(1, 3), torch.tensor([[0]]), torch.tensor([0])), "history"),
        (
            lambda: target_ranks(torch.full((1, 3), torch.nan), torch.tensor([[0]]),
                                 torch.tensor([1])),
            "NaN",
        ),
    ],
)  # fmt: skip
def test_the_recommender_refuses(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_person_needs_a_click_and_an_item_its_features(unchecked):
    model = Recommender(FEATURES, WARM)
    with pytest.raises(ValueError, match="features"):
        unchecked(Recommender.__init__)(model, FEATURES[:3], WARM)
    with pytest.raises(ValueError, match="features"):
        unchecked(components)(FEATURES[:3], WARM, 1)
    with pytest.raises(ValueError, match="a click"):
        model(torch.tensor([[1, 2]]), torch.zeros(1, 2, dtype=torch.bool))


# --- the summary ---------------------------------------------------------------------------------


def test_page_rank_sums_to_one_and_a_hub_leads():
    weights = torch.zeros(5, 5)
    weights[0, 1:] = weights[1:, 0] = 1.0
    rank = page_rank(weights)
    torch.testing.assert_close(rank.sum(), torch.ones(()))
    assert rank[0] > 3 * rank[1:].max()
    torch.testing.assert_close(page_rank(torch.zeros(4, 4)), torch.full((4,), 0.25))
    torch.testing.assert_close(page_rank(weights + 5 * torch.eye(5)), rank)  # no own edges


def test_pick_without_redundancy_is_the_order_of_rank():
    rank = torch.tensor([0.1, 0.5, 0.4])
    alike = torch.ones(3, 3)
    assert pick(rank, alike, 5, 0.0) == [1, 2, 0]


def test_pick_leaves_out_what_is_there_already():
    alike = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert pick(torch.tensor([0.5, 0.45, 0.3]), alike, 2, 0.5) == [0, 2]


def test_pictures_say_which_sentences_matter():
    """Four sentences of two things, all told once; only the pictures show the second."""
    read = torch.eye(4)
    thing = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    seen = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.4]])
    seen = F.normalize(seen, dim=1)
    options = {"sentences": 2, "pictures": 2, "redundancy": 0.0, "temperature": 0.5}
    found = summarise(read, thing, seen, **options)
    assert found.sentences == [2, 3]
    assert found.pictures == [0, 1]
    blind = summarise(read, thing, seen, bridge=0.0, **options)
    assert blind.sentences == [0, 1]


def test_an_article_may_be_short_and_without_pictures():
    vectors = F.normalize(torch.randn(2, 4), dim=1)
    found = summarise(vectors, vectors, torch.zeros(0, 4))
    assert found.sentences == [0, 1] and found.pictures == []


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f: f(page_rank)(torch.ones(2, 3)), "square"),
        (lambda f: f(page_rank)(-torch.ones(2, 2)), "negative"),
        (lambda f: page_rank(torch.ones(2, 2), 1.0), "damping"),
        (lambda f: f(pick)(torch.ones(2), torch.ones(3, 3), 1), "shapes"),
        (lambda f: pick(torch.ones(2), torch.ones(2, 2), 0), "count"),
        (lambda f: pick(torch.ones(2), torch.ones(2, 2), 1, -1.0), "redundancy"),
        (lambda f: f(summarise)(torch.ones(2, 3), torch.ones(1, 3), torch.ones(1, 3)), "same"),
        (lambda f: summarise(torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 3),
                             temperature=0.0), "temperature"),
    ],
)  # fmt: skip
def test_the_summary_refuses(unchecked, call, match):
    with pytest.raises(ValueError, match=match):
        call(unchecked)
