"""The small model for easy-VQA of chapter 13: MiniLM's vectors, a small CNN, a fusion.

easy-VQA's 48,248 questions are 107 different ones, so a locked question encoder has to read 107
sentences and no more. What is left to train sees each picture once for all its questions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.data.easy_vqa import ANSWERS, EasyVQA
from mmlib.encoders.bert import Bert
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.pooling import check_text
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.text import embed_texts
from mmlib.encoders.tokenizers import wordpiece_tokenizer
from mmlib.training import load_weights
from mmlib.vqa import VQA, VQAConfig

__all__ = [
    "KnownQuestions",
    "LargestCNN",
    "easy_accuracy",
    "easy_answers",
    "easy_batches",
    "easy_loss",
    "easy_vqa",
]

CHECKPOINTS = Path(__file__).parent / "checkpoints"


class KnownQuestions(nn.Module):
    """A locked question encoder that has read its questions already.

    The vectors are made of published weights and not saved with a model.

    Args:
        texts: The questions, all different.
        vectors: One for each; by default MiniLM's sentence vectors.

    Attributes:
        dim: Width of the vectors.
        texts: As given.

    Raises:
        ValueError: There are no questions, two are alike, or the vectors are not as many.
    """

    def __init__(
        self, texts: Sequence[str], vectors: Float[Tensor, "texts dim"] | None = None
    ) -> None:
        super().__init__()
        self.texts = tuple(texts)
        self._numbers = {text: number for number, text in enumerate(self.texts)}
        if not self.texts or len(self._numbers) < len(self.texts):
            raise ValueError(f"texts must be different and at least one: got {len(self.texts)}")
        if vectors is None:
            vectors = embed_texts(Bert.pretrained("minilm"), wordpiece_tokenizer(), self.texts)
        if len(vectors) != len(self.texts):
            raise ValueError(f"vectors must be {len(self.texts)}, one a text: got {len(vectors)}")
        self.dim = vectors.shape[1]
        self.register_buffer("vectors", vectors, persistent=False)

    def ids(self, texts: Sequence[str]) -> Int[Tensor, "questions 1"]:
        """The numbers of questions.

        Raises:
            ValueError: One is not known.
        """
        unknown = [text for text in texts if text not in self._numbers]
        if unknown:
            raise ValueError(f"texts must be known questions: got {unknown[0]!r}")
        return torch.tensor([[self._numbers[text]] for text in texts])

    def forward(
        self,
        ids: Int[Tensor, "questions 1"],
        keep: Bool[Tensor, "questions 1"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Look the vectors up.

        Raises:
            TypeError: ``ids`` does not hold integers, or ``keep`` is not boolean.
            ValueError: a wrong shape, or a number that is no question's.
        """
        check_text(ids, keep, len(self.texts), max_length=1)
        pooled = self.vectors[ids[:, 0]]
        keep = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
        return Encoded(pooled[:, None], keep, pooled)


class LargestCNN(nn.Module):
    r"""A :class:`~mmlib.encoders.small_cnn.SmallCNN` whose vector is the maximum of its regions.

    .. math:: \text{pooled}_c = \max_{\text{regions}} t_c

    The one shape covers a tenth of the picture or less. In the mean nine tenths are background; the
    maximum is the region that says most.

    Args:
        dim: Width.
        side: Pictures are reduced to this many pixels first.
    """

    def __init__(self, dim: int = 64, side: int = 32) -> None:
        super().__init__()
        self.inner, self.dim, self.side = SmallCNN(dim), dim, side

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode pictures of one size, at least ``side`` pixels wide and high."""
        if images.shape[-1] != self.side:
            images = F.interpolate(images, size=self.side, mode="area")
        encoded = self.inner(images, keep)
        return encoded._replace(pooled=encoded.tokens.amax(dim=1))


def easy_vqa(
    questions: KnownQuestions,
    fusion: str = "bilinear",
    normalise: bool = True,
    *,
    trained: bool = False,
    seed: int = 0,
) -> VQA:
    """The chapter's model for easy-VQA, untrained or with the weights of its long run.

    Args:
        questions: The question tower.
        fusion: One of :data:`mmlib.fusion.OPERATORS`.
        normalise: See :class:`~mmlib.vqa.VQAConfig`.
        trained: Whether to load the weights, which are for the defaults.
        seed: Of fresh weights; torch's global state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQA(questions, LargestCNN(), VQAConfig(len(ANSWERS), 128, fusion, normalise))
    if trained:
        load_weights(model, CHECKPOINTS / "13_easy_vqa.safetensors")
    return model.eval()


Batch = tuple[Tensor, None, Tensor, Tensor, Tensor]


def easy_batches(
    data: EasyVQA, questions: KnownQuestions, pictures: int = 64, seed: int = 0
) -> Callable[[int], Batch]:
    """Pictures in a new order each epoch, moved by up to 4 pixels, half of the batches mirrored.

    Args:
        data: The training set.
        questions: What numbers its questions have.
        pictures: How many a batch has, with all their questions.
        seed: Of order and moves.

    Returns:
        A function from a step's number to ids, None, images, of and answers.
    """
    ids = questions.ids(data.questions)
    ends = torch.bincount(data.image_index, minlength=len(data.images)).cumsum(0)
    starts, steps = F.pad(ends, (1, 0))[:-1], max(1, len(data.images) // pictures)

    def batch(n: int) -> Batch:
        epoch, place = divmod(n, steps)
        order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        dice = torch.Generator().manual_seed(seed * 1_000_003 + 500_000 + n)
        chosen = torch.randperm(len(data.images), generator=order)[place * pictures :][:pictures]
        rows = torch.cat([torch.arange(starts[i], ends[i]) for i in chosen.tolist()])
        of = torch.repeat_interleave(torch.arange(len(chosen)), (ends - starts)[chosen])
        moves = torch.randint(-4, 5, (2,), generator=dice).tolist()
        images = (data.images[chosen].float() / 255).roll(moves, dims=(2, 3))
        if torch.rand((), generator=dice) < 0.5:
            images = images.flip(3)
        return ids[rows], None, images, of, data.answers[rows]

    return batch


def easy_loss(model: VQA, batch: Batch) -> tuple[Tensor, int]:
    """The sum of the cross-entropies, and how many they are."""
    *given, answers = batch
    return F.cross_entropy(model(*given).float(), answers, reduction="sum"), len(answers)


@torch.no_grad()
def easy_answers(model: VQA, data: EasyVQA) -> Int[Tensor, " questions"]:
    """The model's answer to every question."""
    was_training = model.training
    model.eval()
    try:
        parts = (data.images[i : i + 250].float() / 255 for i in range(0, len(data.images), 250))
        pictures = torch.cat([model.image(part).pooled for part in parts])
        vectors = model.question(model.question.ids(data.questions)).pooled
        return model.answer(vectors, pictures[data.image_index]).argmax(dim=1)
    finally:
        model.train(was_training)


def easy_accuracy(model: VQA, data: EasyVQA) -> float:
    """The share of questions that are answered right."""
    return easy_answers(model, data).eq(data.answers).double().mean().item()
