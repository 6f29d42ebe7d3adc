r"""Using a pretrained encoder: a head for classes, gaps in a text, and the score: chapter 03.

References:
    Devlin et al., *BERT*, NAACL 2019. Schick and Schütze, *Exploiting Cloze Questions for Few Shot
    Text Classification and Natural Language Inference*, EACL 2021.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.encoders.bert import Bert
from mmlib.pretraining import BertForPretraining

__all__ = ["BertClassifier", "cloze", "macro_f1"]


class BertClassifier(nn.Module):
    r"""BERT with a linear layer on its pooled vector: fine-tuning (微调).

    .. math:: p(y \mid x) = \operatorname{softmax}(W \operatorname{pooled}(x) + b)

    All parameters are trained, which is fine-tuning; with those of ``bert`` frozen it is a linear
    probe (线性探测).

    Args:
        bert: The encoder; it is used itself, not copied.
        classes: How many.

    Raises:
        ValueError: ``classes`` is below 2: one logit has nothing to compete with.
    """

    def __init__(self, bert: Bert, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2: got {classes}")
        self.bert, self.dropout = bert, nn.Dropout(bert.config.dropout)
        self.head = nn.Linear(bert.dim, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"] | None = None,
        token_types: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Logits of the classes."""
        return self.head(self.dropout(self.bert(ids, keep, token_types).pooled))


@torch.no_grad()
def cloze(
    model: BertForPretraining, tokenizer: Any, texts: Sequence[str], words: Sequence[str]
) -> Float[Tensor, "batch candidates"]:
    """Probability of each word in the gap of each text (完形填空): classification without a head.

    Args:
        model: Its mode is left as it was.
        tokenizer: The tokenizer that it was trained with.
        texts: Each with one mask token, written as the tokenizer names it.
        words: Candidates, each one token; their probabilities sum to one.

    Raises:
        ValueError: a text has no gap or several, or a word is not one known token.
    """
    if tokenizer.mask_id is None:
        raise ValueError("tokenizer must have a mask token")
    candidates = []
    for word in words:
        pieces = tokenizer.encode([word]).ids[0, 1:-1].tolist()
        if len(pieces) != 1 or pieces[0] == tokenizer.unknown_id:
            raise ValueError(f"words must be single tokens of the vocabulary: got {word!r}")
        candidates += pieces
    ids, keep = tokenizer.encode(texts)
    gaps = ids == tokenizer.mask_id
    if (gaps.sum(1) != 1).any():
        row = int((gaps.sum(1) != 1).int().argmax())
        raise ValueError(
            f"texts must have one {tokenizer.specials['mask']} each: got {texts[row]!r}"
        )
    device, was_training = model.bias.device, model.training
    model.eval()
    try:
        out = model(ids.to(device), keep.to(device), where=gaps.to(device))
    finally:
        model.train(was_training)
    return out.mlm[:, candidates].float().softmax(-1)


def macro_f1(
    predicted: Int[Tensor, " items"], actual: Int[Tensor, " items"], classes: int
) -> float:
    r"""Mean over the classes of F1, the harmonic mean of precision and recall (宏平均 F1).

    .. math::

        \frac1K \sum_k
        \frac{2\,\mathrm{TP}_k}{2\,\mathrm{TP}_k + \mathrm{FP}_k + \mathrm{FN}_k}

    A rare class counts as much as a frequent one, so naming the most frequent class everywhere
    scores low. A class that is neither predicted nor there counts 0, as in scikit-learn.

    Raises:
        ValueError: the lengths differ or are 0, or a class is out of range.

    >>> macro_f1(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]), classes=2)
    0.42857142857142855
    """
    if predicted.shape != actual.shape or not len(actual):
        raise ValueError(
            f"predicted and actual must be as long and not empty: "
            f"got {tuple(predicted.shape)} and {tuple(actual.shape)}"
        )
    both = torch.cat([predicted, actual])
    if int(both.min()) < 0 or int(both.max()) >= classes:
        raise ValueError(
            f"classes must be above every label: got {classes} and labels from "
            f"{int(both.min())} to {int(both.max())}"
        )
    hits = torch.bincount(actual[predicted == actual], minlength=classes).double()
    named = torch.bincount(predicted, minlength=classes) + torch.bincount(actual, minlength=classes)
    return (2 * hits / named.clamp(min=1)).mean().item()
