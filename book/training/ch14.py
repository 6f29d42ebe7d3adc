"""Measure the four applications of chapter 14, each beside its baselines and what can be reached.

Nearly nothing is trained: linear heads on frozen vectors, and a recommender of one small map. The
assistant's and the summaries' test things are in no training set of this book; the monitor's test
sentences are of other reviews and its test emoji are others; the pairs are split by topic. What is
chosen here, λ of the replies' map and the summary's settings, is chosen on training topics and
training articles.
"""

import math
import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlib import results
from mmlib.applications.assistant import Assistant
from mmlib.applications.monitor import Cusum, Monitor, first_alarm, mean_run_length, window_count
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
from mmlib.applications.summary import summarise
from mmlib.data import articles, chatterbot, clicks, clipart, dialogues, emoji, emoji_ratings, posts
from mmlib.encoders import pretrained
from mmlib.encoders.text import embed_texts
from mmlib.encoders.tokenizers import wordpiece_tokenizer
from mmlib.matching import MatchingModel
from mmlib.metrics.bootstrap import interval
from mmlib.metrics.ranking import macro_f1, ndcg
from mmlib.metrics.retrieval import hit_rate, mean_reciprocal_rank, ranks
from mmlib.metrics.rouge import rouge_l, rouge_n, words
from mmlib.metrics.selective import accuracy_at, auroc, rejection_curve
from mmlib.picture_search import matching_model
from mmlib.small_clips import picture_clip, picture_features, picture_tokenizer

MINUTES = 6


def note(name: str, value: float, metric: str, tolerance: float = 0.05, **options) -> None:
    """Record one number of the chapter."""
    results.record(f"14.{name}", value, metric=metric, tolerance=tolerance, seed=0, **options)


@cache
def towers() -> MatchingModel:
    """Chapter 07's towers; the text tower is MiniLM as published."""
    return matching_model()


def sentences(texts: list[str] | tuple[str, ...]) -> Tensor:
    """MiniLM's vectors, of unit length."""
    return embed_texts(
        towers().text, wordpiece_tokenizer(), list(texts), max_length=64, truncate=True
    )


@cache
def drawings() -> Tensor:
    """Every drawing of the clip art in the space of chapter 07's towers."""
    helper = Assistant(dialogues.shop("test"), towers())
    return helper.picture_vectors(clipart.load("all", 128).images)


# --- the assistant -----------------------------------------------------------------------------


def assistant() -> None:
    """Questions about things and in words that were never trained, by words and by pictures."""
    known = dialogues.shop("train")
    helper = Assistant(known, towers())
    helper.fit(dialogues.questions(2000, known, "train", seed=1), drawings())
    shop = dialogues.shop("test")
    helper = helper.with_shop(shop)
    asked = dialogues.questions(1000, shop, "test", "unseen", seed=2)
    found = helper.answers(asked.texts, asked.pictures, drawings())
    right, there, shown = found.articles == asked.articles, asked.answerable, asked.pictures >= 0
    note("desk_ceiling", dialogues.ceiling(), "best reachable: wordings of two meanings", 1e-6)
    for name, rows in (("all", there), ("words", there & ~shown), ("picture", there & shown)):
        for what, hits in (
            ("article", right),
            ("intent", found.intents == asked.intents),
            ("thing", found.things == asked.things),
        ):
            share = hits[rows].double().mean()
            note(f"desk_{what}_{name}", share, f"questions with an answer, {name}: {what} right")
    # Baselines: the nearest title by words alone, by shared words and by sentence vectors.
    by_words = TfIdf(shop.titles)
    for name, score in (
        ("tfidf", by_words(asked.texts) @ by_words(shop.titles).T),
        ("title", sentences(asked.texts) @ sentences(shop.titles).T),
    ):
        nearest = score.argmax(1) == asked.articles
        for rows, kind in ((there, "all"), (there & ~shown, "words"), (there & shown, "picture")):
            label = f"nearest title by {name}, words alone; questions: {kind}"
            note(f"desk_{name}_{kind}", nearest[rows].double().mean(), label)
    curve = rejection_curve(found.confidence, right)
    note("desk_always", curve.accuracy[-1], "all questions answered, 3 in 10 have no answer")
    note("desk_aurc", curve.area, "area above the rejection curve")
    order = torch.arange(len(right)) / len(right)  # without ties, which would cost area
    perfect = rejection_curve(right.double() - 0.5 * order, right).area
    note("desk_aurc_best", perfect, "the same answers, sorted perfectly")
    for percent in (10, 20, 30, 40, 60):
        share = accuracy_at(curve, percent / 100)
        note(f"desk_at_{percent}", share, f"accuracy of the surest {percent} % of all questions")
    note("desk_sorts_right", auroc(found.confidence, right), "AUROC: right answers above wrong")
    note("desk_sorts_known", auroc(found.confidence, there), "AUROC: with an answer above without")
    then = dialogues.follow_ups(asked, "unseen", seed=3)
    alone = helper.answers(then.texts)
    share = (alone.articles == then.articles).double().mean()
    note("desk_it_alone", share, "second turn, 'it', without memory")
    share = (alone.intents == then.intents).double().mean()
    note("desk_it_true", share, "second turn, 'it', the thing remembered")
    # The thing that is remembered is the one that was understood.
    remembered = found.things[there]
    share = ((remembered == then.things) & (alone.intents == then.intents)).double().mean()
    note("desk_it_memory", share, "second turn, 'it', the thing of the first answer")


# --- replies -----------------------------------------------------------------------------------


PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def replies() -> None:
    """Real pairs: the right one among all replies of topics that were never trained."""
    for language in chatterbot.LANGUAGES:
        train_on, test = (chatterbot.load(s, language) for s in ("train", "test"))
        own = same_question(test.questions)
        weigh = TfIdf([*train_on.questions, *train_on.replies], language)
        spaces = {"tfidf": weigh}
        if language == "en":
            spaces["minilm"] = sentences
        note(f"{language}_pairs", len(test), f"{language}: test pairs", 0)
        # A question with forty replies is one question.
        once = own.int().argmax(1) == torch.arange(len(own))
        note(f"{language}_questions", int(once.sum()), f"{language}: different test questions", 0)
        chance = float(own[once].double().mean())
        for name, encode in spaces.items():
            known = encode(train_on.questions), encode(train_on.replies)
            pairs = same_question(train_on.questions)
            penalty = choose_penalty(*known, pairs, train_on.topics, PENALTIES)
            note(f"{language}_{name}_penalty", penalty, "λ, chosen by leaving out one topic", 0)
            questions, answers = encode(test.questions), encode(test.replies)
            turn = ridge_map(*known, penalty)
            for kind, asked in ((name, questions), (f"{name}_map", questions @ turn)):
                found = ranks(asked[once] @ answers.T, own[once])
                label = f"{language}, {kind}, {len(test)} replies"
                for k in (1, 10):
                    note(f"{language}_{kind}_r{k}", hit_rate(found, k), f"R@{k}: {label}",
                         baseline=chance if k == 1 else None)  # fmt: skip
                rate = mean_reciprocal_rank(found)
                note(f"{language}_{kind}_mrr", rate, f"mean reciprocal rank: {label}")
                # Being silent: the lead of the best over the mean of the next nine.
                best = F.normalize(asked[once], dim=1) @ answers.T
                top = best.topk(10, dim=1).values
                sure = top[:, 0] - top[:, 1:].mean(1)
                right = own[once].gather(1, best.argmax(1, keepdim=True))[:, 0]
                curve = rejection_curve(sure, right)
                for percent in (20, 50, 100):
                    share = accuracy_at(curve, percent / 100)
                    note(f"{language}_{kind}_at_{percent}", share, f"surest {percent} %: {label}")
        written(language)


def written(language: str) -> None:
    """Replies that are retrieved, beside replies that a language model writes.

    Nothing is trained, so that all topics may be asked about: 40 questions with several replies.
    """
    test = chatterbot.load("all", language)
    own = same_question(test.questions)
    first = [i for i in range(len(own)) if int(own[i].int().argmax()) == i]
    several = [i for i in first if int(own[i].sum()) > 1]
    several = several[:: max(1, len(several) // 40)][:40]
    note(f"{language}_several", len(several), f"{language}: questions with several replies", 0)
    picked = torch.tensor(several)
    encode = sentences if language == "en" else TfIdf(test.questions, language)
    vectors = encode(test.questions)
    # Every pair of the corpus but this one; another reply to the same question is allowed.
    allowed = torch.arange(len(own)) != picked[:, None]
    _, same = nearest_reply(vectors[picked], vectors, allowed)
    _, other = nearest_reply(vectors[picked], vectors, ~own[picked])
    said = {
        "known": [test.replies[i] for i in same.tolist()],
        "other": [test.replies[i] for i in other.tolist()],
    }
    if language == "en":
        said["written"] = generated([test.questions[i] for i in several])
    # What the first system says is no reference, so that all three have the same ones.
    references = [
        [j for j in own[place].nonzero().flatten().tolist() if j != taken]
        for place, taken in zip(several, same.tolist(), strict=True)
    ]
    first_reply = sentences([test.replies[i] for i in several]) if language == "en" else None
    for kind, texts in said.items():
        marks = [
            max(rouge_l(terms(text, language), terms(test.replies[j], language)).f for j in right)
            for text, right in zip(texts, references, strict=True)
        ]
        label = f"{language}: ROUGE-L of {len(texts)} replies, {kind}"
        note(f"{language}_rouge_{kind}", sum(marks) / len(marks), label)
        low, high = interval(torch.tensor(marks, dtype=torch.float64), torch.arange(len(marks)))
        note(f"{language}_rouge_{kind}_low", low, f"the same, lower end of 95 %: {label}")
        note(f"{language}_rouge_{kind}_high", high, f"the same, upper end of 95 %: {label}")
        if first_reply is not None:
            near = (sentences([text or "." for text in texts]) * first_reply).sum(1).mean()
            note(f"en_cosine_{kind}", near, f"cosine of the {kind} reply with a real one")


def generated(questions: list[str]) -> list[str]:
    """What SmolLM2 with 135 million parameters writes, word by word, always the likeliest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        path = pretrained.files("smollm2-135m")["weights"]
        options = {"gguf_file": path.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()
    prompts = [
        "<|im_start|>system\nYou are a chat program. Answer in one short sentence.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in questions
    ]
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.eos_token
    given = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**given, max_new_tokens=24, do_sample=False)
    new = out[:, given["input_ids"].shape[1] :]
    return [text.split("<|im_end|>")[0].strip() for text in tokenizer.batch_decode(new)]


# --- the monitor -------------------------------------------------------------------------------


def monitor() -> None:
    """Topic and sentiment of real sentences with emoji, and alarms on streams of them."""
    polar = emoji_ratings.polar_emoji()
    part = emoji_ratings.folds(polar, 3)
    seen, held = ((part != 0).nonzero().flatten(), (part == 0).nonzero().flatten())
    train_on = posts.posts("train", polar.positive, seen, seed=0)
    test = posts.posts("test", polar.positive, held, seed=1)
    every = emoji.load("all", 128)
    rows = [every.codes.index(code) for code in polar.emoji.codes]
    pictures = F.normalize(picture_features(every.images[rows].float() / 255), dim=1)
    known, new = sentences(train_on.texts), sentences(test.texts)
    note("posts", len(test), "test posts", 0)
    note("mood_majority", (test.sentiments == 2).double().mean(), "the largest class")
    note("mood_ceiling", posts.emoji_ceiling(test.sentiments), "best by the emoji's polarity alone")
    for use in ("text", "emoji", "both"):
        reader = Monitor(use).fit(train_on, known, pictures)
        read = reader.read(test, new, pictures)
        moods = macro_f1(read.sentiments, test.sentiments, 3)
        right = (read.sentiments == test.sentiments).double()
        low, high = interval(right, test.reviews)
        both = macro_f1(3 * read.topics + read.sentiments, 3 * test.topics + test.sentiments, 12)
        note(f"mood_{use}_f1", moods, f"macro-F1 of three sentiments, {use}")
        note(f"mood_{use}_accuracy", right.mean(), f"accuracy of three sentiments, {use}")
        note(f"mood_{use}_low", low, f"the same, lower end of 95 %, {use}")
        note(f"mood_{use}_high", high, f"the same, upper end of 95 %, {use}")
        note(f"mood_{use}_joint", both, f"macro-F1 of topic and sentiment, 12 classes, {use}")
        alarms(use, read.complaints, test.sentiments)
    note("topic_f1", macro_f1(read.topics, test.topics, 4), "macro-F1 of four topics")
    alarms("true", test.sentiments == 0, test.sentiments)


def alarms(use: str, said: Tensor, sentiments: Tensor) -> None:
    """Delay of an alarm at one false alarm in 1,000 posts at most, by CUSUM and in a window.

    A stream is drawn from test posts by their sentiment; what counts is whether one is *read* as a
    complaint. Of its posts 0.2 are complaints before the change and 0.4 after it.
    """
    streams, length, quiet = 800, 3000, 1000.0
    rates = [float(said[sentiments == mood].double().mean()) for mood in range(3)]
    shares = {"before": (0.2, 0.4, 0.4), "after": (0.4, 0.3, 0.3)}
    seen = {k: sum(w * rates[s] for s, w in enumerate(v)) for k, v in shares.items()}
    note(f"{use}_share_before", seen["before"], f"read as complaints before the change, {use}")
    note(f"{use}_share_after", seen["after"], f"read as complaints after the change, {use}")
    cusum = Cusum(seen["before"], seen["after"])
    limit = 1
    while mean_run_length(cusum.gain, limit, seen["before"]) < quiet:
        limit += 1
    rest = mean_run_length(cusum.gain, limit, seen["before"])
    note(f"{use}_quiet", rest, f"CUSUM, {use}: posts between false alarms, at least 1,000", 500.0)
    delay = mean_run_length(cusum.gain, limit, seen["after"], seen["before"])
    note(f"{use}_delay", delay, f"CUSUM, {use}: mean delay in posts, after a calm", 20.0)
    worst = mean_run_length(cusum.gain, limit, seen["after"])
    note(f"{use}_delay_worst", worst, f"CUSUM, {use}: mean delay in posts, from zero", 20.0)
    for window in (25, 50, 100):
        dice = torch.Generator().manual_seed(window)
        calm = torch.rand(streams, length, generator=dice) < seen["before"]
        count = window_count(calm.long(), window)
        bar = int(window * seen["before"]) + 1
        while _mean(first_alarm(count, bar), length) < quiet and bar < window:
            bar += 1
        changed = torch.rand(streams, length, generator=dice) < seen["after"]
        # The window is full of calm posts when the change comes.
        changed[:, :window] = torch.rand(streams, window, generator=dice) < seen["before"]
        late = first_alarm(window_count(changed.long(), window)[:, window:], bar)
        note(f"{use}_window_{window}", _mean(late, length - window),
             f"the last {window} posts counted, {use}: mean delay in posts", 20.0)  # fmt: skip


def _mean(alarm: Tensor, length: int) -> float:
    """Mean time to an alarm where streams end: time watched over alarms."""
    there = alarm > 0
    watched = torch.where(there, alarm, length).double().sum()
    return math.inf if not there.any() else float(watched / there.sum())


# --- the recommender ---------------------------------------------------------------------------


def recommender() -> None:
    """Next clicks of new people, among all items; warm and cold targets apart."""
    every = clicks.items()
    clip, tokenizer = picture_clip(), picture_tokenizer()
    features = picture_features(clipart.load("all", 128).images.float() / 255)
    with torch.no_grad():
        picture = clip.encode_image(features[:, :, None, None])
        name = clip.encode_text(tokenizer.encode(list(every.names), 96, truncate=True).ids)
    made = clicks.clicks(4000, every, cold=False, seed=1)
    history = torch.cat([made.history, made.target[:, None]], dim=1)
    test = clicks.clicks(2000, every, seed=2)
    cold = ~every.warm[test.target]
    note("cold_share", cold.double().mean(), "share of targets that nobody had clicked")
    scores = {
        "bayes": clicks.bayes_scores(every, test.history),
        "popular": popularity(history, len(every)).expand(len(test), -1),
    }
    keep = torch.ones_like(test.history, dtype=torch.bool)
    picture, name = (components(vectors, every.warm) for vectors in (picture, name))
    inputs = {
        "both": torch.cat([picture, name], 1),
        "picture": picture,
        "text": name,
        "clicks": None,
    }
    for kind, vectors in inputs.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Recommender(vectors, every.warm)
        train(model, history, steps=600, learning_rate=5e-3)
        with torch.no_grad():
            scores[kind] = model(test.history, keep)
    for kind, score in scores.items():
        found = target_ranks(score.double(), test.history, test.target)
        for group, rows in (("all", cold | ~cold), ("warm", ~cold), ("cold", cold)):
            label = f"{kind}, {int(rows.sum())} people, target: {group}"
            note(f"rec_{kind}_hit_{group}", hit_rate(found[rows], 10), f"HitRate@10, {label}")
            note(f"rec_{kind}_ndcg_{group}", ndcg(found[rows], 10), f"NDCG@10, {label}")
        # A shelf of their own: cold targets among the cold items alone.
        alone = score[cold].double().masked_fill(every.warm, -torch.inf)
        found = target_ranks(alone, test.history[cold], test.target[cold])
        label = f"{kind}, {int(cold.sum())} people, cold items alone"
        note(f"rec_{kind}_hit_shelf", hit_rate(found, 10), f"HitRate@10, {label}")
        note(f"rec_{kind}_ndcg_shelf", ndcg(found, 10), f"NDCG@10, {label}")
    note("rec_chance_shelf", 10 / int((~every.warm).sum()), "ten cold items drawn at random")


# --- the summary -------------------------------------------------------------------------------

SETTINGS = [(t, b, r) for t in (0.1, 0.2, 0.3, 0.5) for b in (0.25, 0.5, 1.0) for r in (0.0, 0.3)]


def summary() -> None:
    """Sentences and pictures of test articles; the settings are chosen on training articles."""

    def value(settings: tuple[float, float, float]) -> float:
        marks = _summaries("train", 80, settings)
        return marks["rouge1"] + marks["image"]

    chosen = max(SETTINGS, key=value)
    alone = max(((t, 0.0, r) for t, b, r in SETTINGS if b == 1.0), key=value)
    for name, setting in zip(("temperature", "bridge", "redundancy"), chosen, strict=True):
        note(f"sum_{name}", setting, f"chosen on training articles: {name}", 0)
    for kind, settings in (("graph", chosen), ("text", alone), ("lead", None)):
        for metric, mean in _summaries("test", 300, settings).items():
            note(f"sum_{kind}_{metric}", mean, f"{kind}: {metric} of 300 test articles")
    bounds = {"best": [], "informed": []}
    for article in articles.articles(300, "test", seed=5):
        reference = words(article.reference)

        def mark(text: str, reference: list[str] = reference) -> float:
            return rouge_n(words(text), reference, 1).f

        bounds["best"].append(articles.best_three(article, mark))
        bounds["informed"].append(articles.informed_three(article, mark))
    for kind, values in bounds.items():
        note(f"sum_{kind}_rouge1", sum(values) / len(values), f"ROUGE-1 of the {kind} three")
    shares = [sum(a.chosen) / len(a.chosen) for a in articles.articles(300, "test", seed=5)]
    note("sum_chance_image", sum(shares) / len(shares), "share of pictures that are right")


@cache
def _prepared(split: str, count: int) -> list[tuple[articles.Article, tuple[Tensor, ...]]]:
    made = articles.articles(count, split, seed=5)
    flat = [s for article in made for s in article.sentences]
    with torch.no_grad():
        pooled = embed_texts(towers().text, wordpiece_tokenizer(), flat, normalise=False)
        said = F.normalize(towers().heads.texts(pooled), dim=1)
    parts = [len(article.sentences) for article in made]
    read, said = F.normalize(pooled, dim=1).split(parts), said.split(parts)
    seen = [F.normalize(drawings()[list(a.pictures)], dim=1) for a in made]
    return list(zip(made, zip(read, said, seen, strict=True), strict=True))


@cache
def _summaries(split: str, count: int, settings: tuple[float, float, float] | None) -> dict:
    """Means over articles; without settings, the first sentences and pictures."""
    marks = {"rouge1": [], "rouge2": [], "rougel": [], "about": [], "image": []}
    for article, vectors in _prepared(split, count):
        if settings is None:
            sentences_, pictures = [0, 1, 2], list(range(min(2, len(article.pictures))))
        else:
            temperature, bridge, redundancy = settings
            sentences_, pictures = summarise(
                *vectors, temperature=temperature, bridge=bridge, redundancy=redundancy
            )
        mine = words(" ".join(article.sentences[i] for i in sentences_))
        theirs = words(article.reference)
        marks["rouge1"].append(rouge_n(mine, theirs, 1).f)
        marks["rouge2"].append(rouge_n(mine, theirs, 2).f)
        marks["rougel"].append(rouge_l(mine, theirs).f)
        marks["about"].append(sum(article.about[i] for i in sentences_) / len(sentences_))
        marks["image"].append(sum(article.chosen[i] for i in pictures) / len(pictures))
    return {name: sum(values) / len(values) for name, values in marks.items()}


def main() -> None:
    """Measure everything."""
    for part in (assistant, replies, monitor, recommender, summary):
        part()


if __name__ == "__main__":
    main()
