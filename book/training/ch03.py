"""Pretrain a small BERT and a small causal language model on stories, and count what labels save.

First the two models, which are shipped; then two curves of accuracy against the number of labels,
on statements about stories (our BERT against the same network without pretraining) and on product
reviews (MiniLM against a network of our own and against counting words), three and five draws of
labels.
"""

import copy
import functools
import math
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlib import results
from mmlib.block import TransformerConfig
from mmlib.data import reviews
from mmlib.data.stories import Story, sample_stories, sentence_pairs, statements
from mmlib.encoders.bert import Bert, BertConfig
from mmlib.encoders.text import embed_texts
from mmlib.encoders.tokenizer import Tokenizer
from mmlib.encoders.tokenizers import word_tokenizer, wordpiece_tokenizer
from mmlib.fine_tuning import BertClassifier
from mmlib.language_model import CausalLM, NGram, next_token_loss
from mmlib.pretraining import (
    IGNORE,
    BertForPretraining,
    mask_tokens,
    mlm_loss,
    narrow_start,
    nsp_loss,
)
from mmlib.training import TrainConfig, fit, save_weights

MINUTES = 8
STORIES, STEPS, BATCH = 12_000, 2400, 64
SEEDS = (0, 1, 2, 3, 4)
LABELS = (10, 30, 100, 300, 1000)
SPECIAL = 5  # ids below are the tokenizer's special tokens


def tokenizer_of(stories: list[Story]) -> Tokenizer:
    """Every word of the stories' language is in a few hundred of them."""
    return word_tokenizer([story.text for story in stories[:2000]])


class Pairs:
    """Pairs of sentences as batches for pretraining; new pairs and masks in every epoch."""

    def __init__(self, stories: list[Story], tokenizer: Tokenizer) -> None:
        self.stories, self.tokenizer = [story.sentences for story in stories], tokenizer

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one object, for the whole run)
    def epoch(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All pairs of an epoch, and the order in which to take them."""
        pairs = sentence_pairs(self.stories, seed=number)
        tokens = self.tokenizer.encode_pairs(pairs.first, pairs.second)
        order = torch.randperm(len(self.stories), generator=torch.Generator().manual_seed(number))
        return *tokens, torch.tensor(pairs.is_next), order

    def batch(self, number: int) -> tuple[Tensor, ...]:
        """Ids, mask, types, targets and whether the second sentence follows."""
        epoch, place = divmod(number, len(self.stories) // BATCH)
        ids, keep, types, is_next, order = self.epoch(epoch)
        rows = order[place * BATCH : (place + 1) * BATCH]
        length = int(keep[rows].sum(1).max())
        ids, keep, types = (part[rows, :length] for part in (ids, keep, types))
        masked = self.mask(ids, keep, number)
        return masked.ids, keep, types, masked.targets, is_next[rows]

    def mask(self, ids: Tensor, keep: Tensor, seed: int):
        """Hide 15 %, the special tokens never."""
        return mask_tokens(
            ids,
            keep & (ids >= SPECIAL),
            mask_id=self.tokenizer.mask_id,
            random_ids=torch.arange(SPECIAL, self.tokenizer.vocab_size),
            generator=torch.Generator().manual_seed(seed),
        )


def pretraining_loss(model: BertForPretraining, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean of the first task plus mean of the second."""
    ids, keep, types, targets, is_next = batch
    where = targets != IGNORE
    out = model(ids, keep, types, where=where)
    (words, chosen), (pairs, count) = mlm_loss(out.mlm, targets[where]), nsp_loss(out.nsp, is_next)
    return words / chosen + pairs / count


@torch.no_grad()
def score(model: BertForPretraining, data: Pairs) -> dict[str, float]:
    """Accuracy of both tasks; of the unigram for the first, which names the commonest word."""
    model.eval()
    ids, keep, types, is_next, _ = data.epoch(10_000)
    masked = data.mask(ids, keep, 10_000)
    where = masked.targets != IGNORE
    truth = masked.targets[where]
    mlm = model(masked.ids, keep, types, where=where).mlm.argmax(-1) == truth
    nsp = (model(ids, keep, types, where=where).nsp.argmax(-1) == 0) == is_next
    commonest = ids[keep & (ids >= SPECIAL)].bincount().argmax()
    return {
        "mlm": mlm.double().mean().item(),
        "nsp": nsp.double().mean().item(),
        "unigram": (truth == commonest).double().mean().item(),
    }


def pretrain(tokenizer: Tokenizer, stories: list[Story]) -> BertForPretraining:
    """BERT of three layers, width 64."""
    torch.default_generator.manual_seed(0)
    model = BertForPretraining(
        BertConfig(
            vocab_size=tokenizer.vocab_size, dim=64, heads=4, layers=3, max_length=64, dropout=0.0
        )
    )
    narrow_start(model, torch.Generator().manual_seed(0))
    held_out = {
        split: Pairs(sample_stories(500, seed=1, split=name, objects=2), tokenizer)
        for split, name in (("new", "train"), ("new_things", "test"))
    }

    def evaluate(model: BertForPretraining) -> dict[str, float]:
        found = score(model, held_out["new"])
        print({name: round(value, 3) for name, value in found.items()}, flush=True)
        return {"score": found["mlm"]}

    history = fit(
        model,
        pretraining_loss,
        Pairs(stories, tokenizer).batch,
        TrainConfig(
            STEPS, learning_rate=2e-3, warmup=240, final=0.3, evaluate_every=200, progress=False
        ),
        evaluate=evaluate,
    )
    found = {split: score(model, data) for split, data in held_out.items()}
    for split, what in (("new", "new stories"), ("new_things", "stories with new combinations")):
        results.record(
            f"03.mlm_{split}",
            found[split]["mlm"],
            baseline=found[split]["unigram"],
            tolerance=0.05,
            seed=0,
            metric=f"masked words guessed right, {what}; baseline: the commonest word",
        )
        results.record(
            f"03.nsp_{split}",
            found[split]["nsp"],
            baseline=0.5,
            tolerance=0.1,
            seed=0,
            metric=f"next sentence told from another story's, {what}; baseline: guessing",
        )
    save_weights(
        model,
        "mmlib/checkpoints/03_bert.safetensors",
        card={
            "what": "BERT, 3 layers of width 64, pretrained on stories of two objects",
            "command": "make train CHAPTER=03",
            "data": f"sample_stories({STORIES}, seed=0, split='train', objects=2)",
            "seed": 0,
            "steps": STEPS,
            "minutes": round(history.seconds / 60, 1),
            "metrics": found["new"],
        },
        dtype=torch.bfloat16,
    )
    return model


def read_on(tokenizer: Tokenizer, stories: list[Story]) -> None:
    """The causal language model beside n-grams."""
    held_out = sample_stories(300, seed=1, split="train", objects=2)
    train, test = (tokenizer.encode([s.text for s in part]) for part in (stories, held_out))
    rows, test_rows = (
        [ids[real].tolist() for ids, real in zip(*tokens, strict=True)] for tokens in (train, test)
    )
    counted = {n: NGram(rows, n, tokenizer.vocab_size).perplexity(test_rows) for n in range(1, 8)}
    torch.default_generator.manual_seed(0)
    model = CausalLM(
        TransformerConfig(
            dim=64, heads=4, layers=2, target_vocab=tokenizer.vocab_size, max_length=64, dropout=0.0
        )
    )
    narrow_start(model, torch.Generator().manual_seed(0))

    def batch(number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(len(rows), (BATCH,), generator=generator)
        return train.ids[chosen], train.keep[chosen]

    def loss_fn(model: CausalLM, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return next_token_loss(model(batch[0]), *batch)

    history = fit(
        model, loss_fn, batch, TrainConfig(800, learning_rate=4e-3, warmup=80, progress=False)
    )
    model.eval()
    with torch.no_grad():
        total, count = next_token_loss(model(test.ids), *test)
    best = min(counted, key=counted.get)
    for n, value in counted.items():
        results.record(
            f"03.perplexity_{n}gram",
            value,
            tolerance=0.02,
            metric=f"perplexity of new stories, {n}-gram with Witten-Bell smoothing",
        )
    results.record(
        "03.perplexity",
        math.exp(total / count),
        baseline=counted[best],
        tolerance=0.05,
        seed=0,
        metric=f"perplexity of new stories, causal language model; baseline: {best}-gram",
    )
    save_weights(
        model,
        "mmlib/checkpoints/03_causal.safetensors",
        card={
            "what": "decoder-only language model, 2 layers of width 64, of stories of two objects",
            "command": "make train CHAPTER=03",
            "data": f"sample_stories({STORIES}, seed=0, split='train', objects=2)",
            "seed": 0,
            "steps": 800,
            "minutes": round(history.seconds / 60, 1),
            "metrics": {"perplexity": math.exp(total / count), "n-gram": counted[best]},
        },
        dtype=torch.bfloat16,
    )


def fine_tune(
    bert: Bert, train: tuple[Tensor, ...], test: tuple[Tensor, ...], seed: int, rate: float
) -> float:
    """Accuracy of a copy of ``bert`` that is trained, whole, on ``(ids, keep, types, label)``."""
    model, count = BertClassifier(copy.deepcopy(bert), classes=2), len(train[0])
    size = min(32, count)
    per_epoch = count // size

    def batch(number: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1000 * seed + number // per_epoch)
        rows = torch.randperm(count, generator=generator)
        rows = rows[number % per_epoch * size :][:size]
        return tuple(part[rows] for part in train)

    def loss_fn(model: BertClassifier, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(model(*batch[:3]), batch[3].long())

    steps = max(60, 6 * per_epoch)
    config = TrainConfig(steps, learning_rate=rate, warmup=steps // 10, seed=seed, progress=False)
    fit(model, loss_fn, batch, config)
    model.eval()
    with torch.no_grad():
        return ((model(*test[:3]).argmax(-1) == 1) == test[3]).double().mean().item()


def curve(name: str, what: str, accuracy, seeds: tuple[int, ...] = SEEDS) -> None:
    """Record mean and standard deviation over the seeds for each number of labels."""
    for count in LABELS:
        found = [accuracy(count, seed) for seed in seeds]
        print(name, count, [round(value, 3) for value in found], flush=True)
        for suffix, value in (("", statistics.mean(found)), ("_sd", statistics.stdev(found))):
            kind = "spread" if suffix else "mean"
            results.record(
                f"03.{name}_{count}{suffix}",
                value,
                tolerance=0.06,
                metric=f"{what}, {count} labels, {kind} of {len(seeds)} draws",
            )


def label_statements(tokenizer: Tokenizer, pretrained: BertForPretraining) -> None:
    """Is a statement about a story true? Whole networks, with and without pretraining."""

    def encoded(seed: int, count: int) -> tuple[Tensor, ...]:
        made = statements(sample_stories(count, seed, split="train", objects=2), seed)
        tokens = tokenizer.encode_pairs(made.stories, made.statements)
        return *tokens, torch.tensor(made.is_true)

    test, train = encoded(2, 700), encoded(3, 3500)

    def accuracy(pretrain: bool, count: int, seed: int) -> float:
        rows = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:count]
        bert = pretrained.bert
        if not pretrain:
            fresh = BertForPretraining(pretrained.config)
            narrow_start(fresh, torch.Generator().manual_seed(seed))
            bert = fresh.bert
        return fine_tune(bert, tuple(part[rows] for part in train), test, seed, 1e-3)

    what = "statements judged right by a fine-tuned BERT"
    three = SEEDS[:3]
    curve("statements", what, functools.partial(accuracy, True), three)
    scratch = functools.partial(accuracy, False)
    curve("statements_scratch", f"{what} that was not pretrained", scratch, three)


def probe(x: Tensor, y: Tensor, decay: float = 1e-3) -> Tensor:
    """Logistic regression, the whole batch at once: a linear probe."""
    weight = torch.zeros(x.shape[1] + 1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight[:-1] + weight[-1], y.long())
        loss = loss + decay * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def label_reviews() -> None:
    """Is a sentence of a review positive? MiniLM and a probe, counted words, a fresh network."""
    train, test = reviews.load("train"), reviews.load("test")
    pieces = wordpiece_tokenizer()
    minilm = Bert.pretrained("minilm")
    x, x_test = (embed_texts(minilm, pieces, part.texts) for part in (train, test))

    def rows_of(count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(train), generator=generator)[:count]

    def right(features: Tensor, weight: Tensor) -> float:
        guess = (features @ weight[:-1] + weight[-1]).argmax(-1) == 1
        return (guess == test.positive).double().mean().item()

    def pretrained(count: int, seed: int) -> float:
        rows = rows_of(count, seed)
        return right(x_test, probe(x[rows], train.positive[rows]))

    def words(count: int, seed: int) -> float:
        rows = rows_of(count, seed)
        known = word_tokenizer([train.texts[row] for row in rows])

        def bag(texts: tuple[str, ...]) -> Tensor:
            counts = torch.zeros(len(texts), known.vocab_size)
            ids, keep = known.encode(texts)
            counts.scatter_(1, ids, keep.float())
            counts[:, :SPECIAL] = 0
            return F.normalize(counts, dim=-1)

        weight = probe(bag([train.texts[row] for row in rows]), train.positive[rows])
        return right(bag(test.texts), weight)

    def scratch(count: int, seed: int) -> float:
        rows = rows_of(count, seed).tolist()
        known = word_tokenizer([train.texts[row] for row in rows])
        ids, keep = known.encode([train.texts[row] for row in rows], 40, truncate=True)
        test_ids, test_keep = known.encode(test.texts, 40, truncate=True)
        model = BertForPretraining(
            BertConfig(vocab_size=known.vocab_size, dim=64, heads=4, layers=2, max_length=40)
        )
        narrow_start(model, torch.Generator().manual_seed(seed))
        part = ids, keep, torch.zeros_like(ids), train.positive[rows]
        whole = test_ids, test_keep, torch.zeros_like(test_ids), test.positive
        return fine_tune(model.bert, part, whole, seed, 1e-3)

    curve("reviews", "reviews judged right, MiniLM with a linear probe", pretrained)
    curve("reviews_words", "the same, counted words with a linear probe", words)
    curve("reviews_scratch", "the same, a BERT that was not pretrained", scratch)


def main() -> None:
    """Train, and record every number."""
    stories = sample_stories(STORIES, seed=0, split="train", objects=2)
    tokenizer = tokenizer_of(stories)
    label_reviews()
    read_on(tokenizer, stories)
    label_statements(tokenizer, pretrain(tokenizer, stories))


if __name__ == "__main__":
    main()
