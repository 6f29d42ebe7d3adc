r"""Questions about scenes as tensors, and the small :class:`~mmlib.reader.Reader` of chapter 13.

The reader's picture encoder is four convolutions whose 8 × 8 regions are put together by fours: 16
tokens of 8 × 8 pixels each. Every region costs every question a key and a value in every block, so
a fourth of them costs a fourth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from mmlib.data import easy_vqa, scenes
from mmlib.data.scene_places import ANSWERS as PLACE_ANSWERS
from mmlib.data.scene_places import FORMS, place_questions
from mmlib.data.scenes import COLOURS, DEFAULT_HOLDOUT, SHAPES, SIZES, Scene
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.regions import check_images, encode_tokens
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.reader import Reader, ReaderConfig
from mmlib.training import load_weights

__all__ = [
    "PLACE_ANSWERS",
    "SCENE_ANSWERS",
    "VOCABULARY",
    "Asked",
    "MergedRegions",
    "accuracies",
    "ask_places",
    "ask_scenes",
    "batches",
    "blind",
    "looked_at",
    "question_loss",
    "scene_reader",
]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SCENE_ANSWERS = scenes.ANSWERS
_TEMPLATES = (
    "is there a an many how are object objects as more fewer than what colour shape size "
    "the to left right of above below and ?"
)
_plural = [word + ("es" if word.endswith("s") else "s") for word in SHAPES]
_forms = [form.replace("{}", "") for kinds in FORMS.values() for f in kinds.values() for form in f]
#: Every word of the questions, behind padding and the unknown word.
VOCABULARY = easy_vqa.vocabulary(
    [_TEMPLATES, *SIZES, *COLOURS, *SHAPES, *_plural, *_forms],
)


class MergedRegions(nn.Module):
    """A :class:`~mmlib.encoders.small_cnn.SmallCNN` whose regions are joined two by two.

    Args:
        dim: Width of a region before they are joined; the tokens are four times as wide.

    Attributes:
        dim: Width of the tokens.
    """

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.inner, self.dim = SmallCNN(dim), 4 * dim

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode pictures whose sides are multiples of 8 pixels.

        Raises:
            TypeError: ``images`` is not floating point, or ``keep`` is not boolean.
            ValueError: a wrong shape.
        """
        check_images(images, keep, self.inner.channels)
        if images.shape[2] % 8 or images.shape[3] % 8:
            raise ValueError(
                f"images must have sides that are multiples of 8: got {tuple(images.shape[2:])}"
            )
        tokens = rearrange(
            self.inner.layers(images),
            "batch dim (rows down) (columns along) -> batch (rows columns) (dim down along)",
            down=2,
            along=2,
        )
        return encode_tokens(tokens, tokens.mean(dim=1), keep)


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions about scenes; those about one picture stand together, in the pictures' order.

    Attributes:
        images: The pictures, in [0, 1], or their tokens (:func:`looked_at`).
        ids: The questions' words, as numbers of :data:`VOCABULARY`.
        keep: Which of them exist.
        of: Which picture each question is about.
        answers: The numbers of the right answers.
        texts: The questions.
        kinds: What kind each is.
    """

    images: Float[Tensor, "pictures ..."]
    ids: Int[Tensor, "questions length"]
    keep: Bool[Tensor, "questions length"]
    of: Int[Tensor, " questions"]
    answers: Int[Tensor, " questions"]
    texts: tuple[str, ...]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        """The number of questions."""
        return len(self.texts)

    def first(self, questions: int) -> "Asked":
        """The first questions, with their pictures.

        Raises:
            ValueError: There are not as many.
        """
        if not 1 <= questions <= len(self):
            raise ValueError(f"questions must be from 1 to {len(self)}: got {questions}")
        rows = slice(questions)
        pictures = int(self.of[questions - 1]) + 1
        parts = (getattr(self, name)[rows] for name in ("ids", "keep", "of", "answers"))
        return Asked(self.images[:pictures], *parts, self.texts[rows], self.kinds[rows])


def ask_scenes(
    drawn: Sequence[Scene], seed: int, kinds: Sequence[str] = scenes.KINDS, size: int = 32
) -> Asked:
    """The questions of :func:`mmlib.data.scenes.questions`, one of each kind a scene."""
    found = [
        (i, q.kind, q.text, SCENE_ANSWERS.index(q.answer))
        for i, scene in enumerate(drawn)
        for q in scenes.questions(scene, seed * 7919 + i, kinds, DEFAULT_HOLDOUT)
    ]
    return _asked(drawn, found, size)


def ask_places(drawn: Sequence[Scene], seed: int, split: str = "train", size: int = 32) -> Asked:
    """The questions of :func:`mmlib.data.scene_places.place_questions`, up to two a scene."""
    found = [
        (i, q.kind, q.text, PLACE_ANSWERS.index(q.answer))
        for i, scene in enumerate(drawn)
        for q in place_questions(scene, seed * 7919 + i, split)
    ]
    return _asked(drawn, found, size)


def _asked(drawn: Sequence[Scene], found: list[tuple], size: int) -> Asked:
    if not found:
        raise ValueError("drawn must hold a scene about which something can be asked: got none")
    of, kinds, texts, answers = zip(*found, strict=True)
    ids, keep = easy_vqa.encode(texts, VOCABULARY)
    images = scenes.render(drawn, size)
    return Asked(images, ids, keep, torch.tensor(of), torch.tensor(answers), texts, kinds)


def blind(asked: Asked, what: str) -> Asked:
    """The same questions with black pictures, or without their words: what a baseline sees.

    Args:
        asked: The questions.
        what: ``"pictures"`` or ``"words"``, which become unknown ones, one a question.

    Raises:
        ValueError: It is neither.
    """
    if what not in ("pictures", "words"):
        raise ValueError(f"what must be 'pictures' or 'words': got {what!r}")
    images, ids, keep = asked.images, asked.ids, asked.keep
    if what == "pictures":
        images = torch.zeros_like(images)
    else:
        ids, keep = torch.ones_like(ids[:, :1]), torch.ones_like(keep[:, :1])
    return replace(asked, images=images, ids=ids, keep=keep)


@torch.no_grad()
def looked_at(asked: Asked, tower: nn.Module) -> Asked:
    """The same questions with the tokens of a locked picture tower in place of the pictures."""
    was_training = tower.training
    tower.eval()
    try:
        tokens = torch.cat([tower(part).tokens for part in asked.images.split(250)])
    finally:
        tower.train(was_training)
    return replace(asked, images=tokens)


Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def batches(asked: Asked, pictures: int, seed: int = 0) -> Callable[[int], Batch]:
    """Random pictures with all their questions, for :func:`mmlib.training.fit`.

    Args:
        asked: The questions.
        pictures: How many pictures a batch has.
        seed: Which ones.

    Returns:
        A function from a step's number to ids, keep, images, of and answers.
    """
    ends = torch.bincount(asked.of, minlength=len(asked.images)).cumsum(0)
    starts = F.pad(ends, (1, 0))[:-1]

    def batch(n: int) -> Batch:
        dice = torch.Generator().manual_seed(seed * 1_000_003 + n)
        chosen = torch.randperm(len(asked.images), generator=dice)[:pictures]
        rows = [torch.arange(starts[i], ends[i]) for i in chosen.tolist()]
        of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in rows]))
        row = torch.cat(rows)
        length = int(asked.keep[row].sum(1).max())
        words = asked.ids[row, :length], asked.keep[row, :length]
        return *words, asked.images[chosen], of, asked.answers[row]

    return batch


def question_loss(model: Reader, batch: Batch) -> tuple[Tensor, int]:
    """The sum of the cross-entropies, and how many they are."""
    *given, answers = batch
    logits = model(*given).logits
    return F.cross_entropy(logits.float(), answers, reduction="sum"), len(answers)


@torch.no_grad()
def accuracies(model: Reader, asked: Asked, head: nn.Module | None = None) -> dict[str, float]:
    """The share of right answers, over all questions (``"all"``) and of each kind.

    Args:
        model: Put into eval mode for it, and back.
        asked: The questions.
        head: In place of the model's own, for a task that was learned before.
    """
    was_training, own = model.training, model.head
    model.eval()
    try:
        model.head = own if head is None else head
        regions = torch.cat([model.read(part) for part in asked.images.split(256)])
        right = torch.cat(
            [
                model(asked.ids[rows], asked.keep[rows], None, asked.of[rows], regions=regions)
                .logits.argmax(1)
                .eq(asked.answers[rows])
                for rows in torch.arange(len(asked)).split(512)
            ]
        ).double()
    finally:
        model.head = own
        model.train(was_training)
    found = {"all": right.mean().item()}
    for kind in dict.fromkeys(asked.kinds):
        mine = torch.tensor([other == kind for other in asked.kinds])
        found[kind] = right[mine].mean().item()
    return found


def scene_reader(
    answers: int = len(SCENE_ANSWERS), *, trained: bool = False, seed: int = 0
) -> Reader:
    """The chapter's reader, untrained or with the weights of its long run.

    Its picture tower is the one that learned to caption scenes in chapter 08, and stays locked.

    Args:
        answers: Width of the classifier.
        trained: Whether to load the weights, which are for :data:`SCENE_ANSWERS`.
        seed: Of fresh weights; torch's global state is left as it was.

    Raises:
        ValueError: The weights are asked for with another number of answers.
    """
    if trained and answers != len(SCENE_ANSWERS):
        raise ValueError(f"answers must be {len(SCENE_ANSWERS)} with the weights: got {answers}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ReaderConfig(len(VOCABULARY), answers, regions=16, dim=128, heads=4, layers=2)
        model = Reader(MergedRegions(64), config)
    if trained:
        load_weights(model, CHECKPOINTS / "13_scenes.safetensors")
    else:
        state = load_file(CHECKPOINTS / "08_scenes_lstm.safetensors")
        start = "encoder."
        tower = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        model.image.inner.load_state_dict(tower)
    model.image.requires_grad_(False)
    return model.eval()
