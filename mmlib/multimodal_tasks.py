r"""Chapter 12's losses, one for each kind of lesson, and what a model writes or hears."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmlib.ctc import ctc_best_path
from mmlib.data.batch import Batch
from mmlib.decoding import greedy
from mmlib.multimodal import MultimodalTransformer
from mmlib.multimodal_decoding import MultimodalDecoding
from mmlib.multimodal_lessons import Lesson
from mmlib.multimodal_words import task_id, vocabulary
from mmlib.speech_synthesis import frame_loss

__all__ = ["fit_of", "hear", "lesson_loss", "write"]

_TOLD = ("caption", "clip", "summary")


def lesson_loss(model: MultimodalTransformer, lesson: Lesson) -> Tensor:
    r"""The loss of a lesson, a mean.

    Words: cross-entropy in nats a word. Sound that is written down has half of CTC's loss in nats a
    word beside it and, where the lesson tells which word is said when, half of the cross-entropy
    of the same head in nats a token of sound. Speech: the mean absolute error of the frames, and of
    the log durations. Captions and summaries: four times the divergence of what the stems alone say
    of the words (:meth:`~mmlib.multimodal.MultimodalTransformer.bag_logits`) from those of the
    text.

    Raises:
        ValueError: the lesson lacks what its task needs.
    """
    task, inputs = lesson.task, lesson.inputs
    if task == "speak":
        return _speak_loss(model, lesson)
    words, real = inputs.targets, inputs.targets_keep
    memory = model.encode(inputs)
    begin = torch.full_like(words[:, :1], task_id(task))
    logits, _ = model.write(memory, torch.cat([begin, words[:, :-1]], dim=1))
    loss = F.cross_entropy(logits[real].float(), words[real])
    if task in _TOLD:
        loss = loss + 4.0 * _bag_loss(model.bag_logits(memory).float(), words, real)
    if task == "transcribe":
        heard, exists = model.ctc_logits(memory)
        said = real.sum(1) - 1  # without the end token
        each = F.ctc_loss(
            heard.float().log_softmax(2).transpose(0, 1),
            words,
            exists.sum(1),
            said,
            reduction="none",
            zero_infinity=True,
        )
        loss = loss + 0.5 * each.sum() / said.sum()
        if lesson.aligned is not None:
            loss = loss + 0.5 * F.cross_entropy(heard[exists].float(), lesson.aligned[exists])
    return loss


def _bag_loss(logits: Tensor, words: Tensor, real: Tensor) -> Tensor:
    """Divergence from the words of the text, each of which weighs the same."""
    real = real & (words != vocabulary().end_id)
    bag = torch.zeros_like(logits).scatter(1, words.where(real, 0), 1.0)
    bag[:, 0] = 0.0
    return F.kl_div(logits.log_softmax(1), bag / bag.sum(1, keepdim=True), reduction="batchmean")


def _speak_loss(model: MultimodalTransformer, lesson: Lesson) -> Tensor:
    if lesson.steps is None or lesson.voices is None or lesson.frames is None:
        raise ValueError("a lesson of speaking must have steps, voices and frames")
    memory = model.encode(lesson.inputs)
    frames, _ = model.speak(memory, lesson.steps, lesson.voices)
    total, count = frame_loss(frames, lesson.frames, lesson.frames_keep)
    real = lesson.inputs.text_keep
    wrong = (model.log_durations(memory).float() - lesson.steps.float().log1p()).abs()
    return total / count + 0.2 * wrong[real].mean()


@torch.no_grad()
def write(
    model: MultimodalTransformer, task: str, inputs: Batch, max_length: int = 40
) -> list[str]:
    """What the model writes about a batch, greedily: words with spaces between.

    Raises:
        ValueError: no words are written in this task.
    """
    step = MultimodalDecoding(model, model.encode(inputs))
    end = vocabulary().end_id
    found = greedy(step, begin=task_id(task), end=end, max_length=max_length)
    return _join(found.best())


@torch.no_grad()
def fit_of(
    model: MultimodalTransformer, task: str, inputs: Batch, texts: Sequence[str]
) -> Float[Tensor, "batch texts"]:
    r"""How well each text fits each item: :math:`\log p(\text{text} \mid \text{item})`.

    A model that writes can search, too. It has to read every item with every text, where a
    contrastive one (:mod:`mmlib.clip`) compares two vectors.

    Raises:
        ValueError: no words are written in this task, or there are no texts.
    """
    if not texts:
        raise ValueError("texts must not be empty")
    ids, keep = vocabulary().encode(list(texts))
    begun = torch.cat([torch.full_like(ids[:, :1], task_id(task)), ids[:, 1:-1]], dim=1)
    memory = model.encode(inputs)
    found = []
    for item in range(len(inputs)):
        same = memory.select(torch.full((len(texts),), item))
        told = model.write(same, begun)[0].log_softmax(2).gather(2, ids[:, 1:, None])[..., 0]
        found.append(told.masked_fill(~keep[:, 1:], 0.0).sum(1))
    return torch.stack(found)


@torch.no_grad()
def hear(model: MultimodalTransformer, inputs: Batch) -> list[str]:
    """What CTC reads in the sounds of a batch."""
    return _join(ctc_best_path(*model.ctc_logits(model.encode(inputs))))


def _join(rows: list[list[int]]) -> list[str]:
    words = vocabulary().backend.id_to_token
    return [" ".join(words(token) or "<task>" for token in row) for row in rows]
