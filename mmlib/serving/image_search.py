"""Pictures that fit a sentence: chapter 07's search among the emoji, as a function of the service.

The pictures' vectors are computed once, in about a minute, and kept in the cache folder under a
name made of the weights and the pictures: other weights never meet old vectors.
"""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import ConfigDict, Field
from torch import Tensor

from mmlib.data import emoji
from mmlib.download import cache_folder
from mmlib.picture_search import CHECKPOINTS, PictureSearch, chinese_tower, matching_model
from mmlib.search import SearchIndex
from mmlib.serving.functions import Job, Limits, Reply, Request, Text, png_url

__all__ = ["ImageSearch", "Match", "SearchReply", "SearchRequest"]

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_TOKENS = 64


class SearchRequest(Request):
    """What is looked for."""

    model_config = ConfigDict(strict=True)  # JSON has numbers: "5" and true are none

    query: Text
    count: Annotated[int, Field(ge=1, le=20, description="how many pictures")] = 5
    min_score: Annotated[float, Field(ge=-1, le=1, description="least cosine")] = -1.0


class Match(Reply):
    """A picture that was found."""

    name: str
    name_zh: str
    score: Annotated[float, Field(description="cosine of the picture and the sentence")]
    image: Annotated[str, Field(description="a PNG as a data: address")]


class SearchReply(Reply):
    """The pictures, the best first."""

    results: list[Match]


class ImageSearch:
    """Search among the emoji, in English or Chinese.

    Args:
        pictures: How many of them, from the first on; all by default.
    """

    name, title = "search", "Image search"
    summary = "Find the pictures that fit a sentence, in English or Chinese."
    request, reply, takes_picture = SearchRequest, SearchReply, False
    limits = Limits()

    def __init__(self, pictures: int | None = None) -> None:
        self.pictures = pictures

    def load(self) -> None:
        """Load chapter 07's towers, and the vectors of the pictures from the cache if there."""
        data = emoji.load("all")
        self._data = data.select(range(len(data))[: self.pictures])
        images = self._data.images
        self._search = PictureSearch(images[:1], matching_model(), chinese_tower())
        path = _vectors_path(images)
        try:
            self._index = SearchIndex.load(path)
        except (FileNotFoundError, ValueError):
            found = PictureSearch(images, self._search.model, self._search.chinese)
            self._index = SearchIndex(found.vectors)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._index.save(path)
        self.run([Job(SearchRequest(query="a cat")), Job(SearchRequest(query="猫"))])

    @torch.no_grad()
    def encode(self, queries: Sequence[str]) -> Float[Tensor, "queries dim"]:
        """What :meth:`mmlib.picture_search.PictureSearch.encode` gives, in a batch a language."""
        model, chinese = self._search.model, self._search.chinese
        written = [bool(_CHINESE.search(query)) for query in queries]
        vectors: dict[int, Tensor] = {}
        for language in (False, True):
            places = [i for i, is_chinese in enumerate(written) if is_chinese == language]
            if not places:
                continue
            texts = [queries[i] for i in places]
            if language:
                ids, keep = chinese.tokenizer.encode(texts, truncate=True)
                rows = model.heads.texts(chinese(ids, keep).pooled)
            else:
                rows = model.encode_texts(
                    *self._search.tokenizer.encode(texts, _TOKENS, truncate=True)
                )
            vectors |= dict(zip(places, rows, strict=True))
        return torch.stack([vectors[i] for i in range(len(queries))])

    def run(self, jobs: Sequence[Job]) -> list[Reply]:
        """The matches of each query."""
        most = min(max(job.request.count for job in jobs), len(self._index))
        found = self._index.search(self.encode([job.request.query for job in jobs]), most)
        replies = []
        for job, scores, ids in zip(jobs, found.scores.tolist(), found.ids.tolist(), strict=True):
            results = [
                Match(
                    name=self._data.names[i],
                    name_zh=self._data.names_zh[i],
                    score=score,
                    image=self._png(i),
                )
                for score, i in zip([round(score, 4) for score in scores], ids, strict=True)
                if score >= job.request.min_score
            ]
            replies.append(SearchReply(results=results[: job.request.count]))
        return replies

    @functools.cached_property
    def _png(self):
        @functools.cache  # no more than there are pictures
        def png(i: int) -> str:
            return png_url(Image.fromarray(self._data.images[i].permute(1, 2, 0).numpy()))

        return png


def _vectors_path(images: Tensor) -> Path:
    card = json.loads((CHECKPOINTS / "07_matching.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(card["sha256"].encode())
    digest.update(images.numpy().tobytes())
    return cache_folder() / "serving" / f"search-{digest.hexdigest()[:16]}.safetensors"
