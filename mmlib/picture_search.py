"""Search pictures by a sentence, in English or Chinese, with the towers that chapter 07 trained.

What is published is not shipped a second time: the checkpoint holds the heads and the stages that
were tuned, and :func:`mmlib.towers.towers` brings the rest.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mmlib.chinese_tower import ChineseTower
from mmlib.class_words import ClassWords
from mmlib.data import emoji
from mmlib.encoders.image import imagenet_classes, imagenet_head
from mmlib.encoders.preprocessing import Recipe, preprocess
from mmlib.encoders.text import embed_texts
from mmlib.encoders.tokenizers import wordpiece_tokenizer
from mmlib.matching import MatchingConfig, MatchingModel
from mmlib.towers import towers, tune, tuned_parts
from mmlib.training import load_weights

__all__ = ["RECIPE", "PictureSearch", "checkpoint_parts", "chinese_tower", "matching_model"]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
RECIPE = Recipe(128, None, "bicubic", (0.5,) * 3, (0.5,) * 3)
"""Pictures of 128 pixels, uncut: what is drawn fills them to the edge."""
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def matching_model(trained: bool = True, tuned_stages: int = 2) -> MatchingModel:
    """EfficientNet-Lite0, MiniLM and the heads between them.

    Args:
        trained: With the weights of chapter 07; else heads that know nothing yet.
        tuned_stages: How many stages of the picture tower are trained.

    Raises:
        mmlib.download.SourceUnavailable: The published weights are not to be had.
    """
    image, text, tokenizer, _ = towers()
    tune(image, tuned_stages)
    names = embed_texts(text, tokenizer, list(imagenet_classes()))
    words = ClassWords(imagenet_head(), names)
    model = MatchingModel(image, text, MatchingConfig(dim=384, dropout=0.5), words)
    if trained:
        load_weights(checkpoint_parts(model), CHECKPOINTS / "07_matching.safetensors")
    return model.eval()


def checkpoint_parts(model: MatchingModel) -> nn.ModuleDict:
    """The parts of a model that are trained, to save and to load them."""
    return nn.ModuleDict({"heads": model.heads, "image": tuned_parts(model.image)})


def chinese_tower(trained: bool = True) -> ChineseTower:
    """Characters to MiniLM's space; it knows those of the training emoji's names and keywords."""
    known = emoji.load("train", 8)
    texts = [*known.names_zh, *(tag for tags in known.tags_zh for tag in tags)]
    tower = ChineseTower(texts)
    if trained:
        load_weights(tower, CHECKPOINTS / "07_chinese.safetensors")
    return tower.eval()


class PictureSearch:
    """Pictures that can be searched by a sentence.

    Args:
        images: uint8, three channels, any one size.
        model: The towers; chapter 07's by default.
        chinese: For sentences with Chinese characters; chapter 07's by default.
        batch_size: Pictures encoded at once.

    Attributes:
        vectors: One of unit length for each picture.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "pictures 3 height width"],
        model: MatchingModel | None = None,
        chinese: ChineseTower | None = None,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}")
        self.model = matching_model() if model is None else model
        self.chinese = chinese_tower() if chinese is None else chinese
        self.tokenizer = wordpiece_tokenizer()
        with torch.no_grad():
            self.vectors = torch.cat(
                [
                    self.model.encode_images(preprocess(part.float() / 255, RECIPE))
                    for part in images.split(batch_size)
                ]
            )

    @torch.no_grad()
    def encode(self, queries: Sequence[str]) -> Float[Tensor, "queries dim"]:
        """Sentences in the space of the pictures; Chinese ones by the Chinese tower.

        Raises:
            ValueError: There is no query, or one is empty.
        """
        if isinstance(queries, str) or not queries or not all(q.strip() for q in queries):
            raise ValueError(
                f"queries must be sentences, at least one, none empty: got {queries!r}"
            )
        vectors = []
        for query in queries:
            if _CHINESE.search(query):
                ids, keep = self.chinese.tokenizer.encode([query], truncate=True)
                vectors.append(self.model.heads.texts(self.chinese(ids, keep).pooled))
            else:
                vectors.append(
                    self.model.encode_texts(*self.tokenizer.encode([query], 64, truncate=True))
                )
        return torch.cat(vectors)

    def find(
        self, query: str, count: int = 5
    ) -> tuple[Float[Tensor, " count"], Int[Tensor, " count"]]:
        """The pictures that fit a sentence best.

        Args:
            query: English, or Chinese.
            count: How many.

        Returns:
            Cosines and numbers of pictures, best first.

        Raises:
            ValueError: The query is empty, or there are not so many pictures.
        """
        if not 1 <= count <= len(self.vectors):
            raise ValueError(f"count must be from 1 to {len(self.vectors)}: got {count}")
        best = (self.encode([query])[0] @ self.vectors.T).topk(count)
        return best.values, best.indices
