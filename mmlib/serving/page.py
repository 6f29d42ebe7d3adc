"""The page: a tab for each function, made with Gradio, on the same queues and limits as the API.

Everything that the page needs comes from this machine: Gradio's fonts from Google and its
analytics are left out. An upload to the page, unlike one to the API, is a file for a few minutes:
Gradio keeps it in a folder of this process, which is deleted with it.
"""

import base64
import io
import mimetypes
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from PIL import Image  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from mmlib.data import scenes  # noqa: E402
from mmlib.serving.app import Service  # noqa: E402
from mmlib.serving.functions import Job  # noqa: E402
from mmlib.serving.problems import Refused, reason  # noqa: E402

__all__ = ["TABS", "mount_page"]

_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


def _search_tab(service: Service) -> None:
    query = gr.Textbox(label="Sentence", placeholder="a red fruit", max_length=300)
    count = gr.Slider(1, 20, value=5, step=1, label="Pictures")
    button = gr.Button("Search", variant="primary")
    found = gr.Gallery(label="Found", columns=5, height="auto", object_fit="contain")

    async def search(query: str, count: float) -> list[tuple[str, str]]:
        reply = await _ask(service, "search", {"query": query, "count": int(count)})
        return [(one.image, f"{one.name} {one.score:.2f}") for one in reply.results]

    gr.on([button.click, query.submit], search, [query, count], found, api_visibility="private")
    usual = ("a red fruit", "an animal that lives in the sea", "下雨")
    gr.Examples(list(getattr(service.functions["search"], "examples", usual)), query)


def _picture_field() -> gr.Image:
    # The file as it came: what Gradio would decode is not yet known to be small.
    return gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=256,
    )


def _caption_tab(service: Service) -> None:
    picture = _picture_field()
    button = gr.Button("Describe", variant="primary")
    caption = gr.Textbox(label="Caption", interactive=False)

    async def describe(picture: str | None) -> str:
        reply = await _ask(service, "caption", {}, picture)
        return f"{reply.caption} (probability {reply.probability:.2f})"

    button.click(describe, picture, caption, api_visibility="private")
    gr.Examples([_scene(seed) for seed in (3, 5, 8)], picture)


def _ask_tab(service: Service) -> None:
    picture = _picture_field()
    question = gr.Textbox(
        label="Question", placeholder="what colour is the circle?", max_length=300
    )
    button = gr.Button("Ask", variant="primary")
    answer = gr.Textbox(label="Answer", interactive=False)

    async def ask(picture: str | None, question: str) -> str:
        reply = await _ask(service, "ask", {"question": question}, picture)
        return f"{reply.answer} (probability {reply.probability:.2f})"

    gr.on(
        [button.click, question.submit],
        ask,
        [picture, question],
        answer,
        api_visibility="private",
    )
    questions = ("how many objects are there?", "what shape is there?", "is there a red object?")
    examples = [[_scene(seed), text] for seed, text in zip((3, 5, 8), questions, strict=True)]
    gr.Examples(examples, [picture, question])


def _paint_tab(service: Service) -> None:
    caption = gr.Textbox(
        label="Description", placeholder="a large red star in the centre", max_length=300
    )
    candidates = gr.Slider(1, 16, value=8, step=1, label="Candidates, of which the best is shown")
    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
    button = gr.Button("Paint", variant="primary")
    painted = gr.Image(label="Painted", interactive=False, height=256)

    async def paint(caption: str, candidates: float, seed: float | None) -> Image.Image:
        fields = {"caption": caption, "candidates": int(candidates), "seed": int(seed or 0)}
        reply = await _ask(service, "paint", fields)
        return Image.open(io.BytesIO(base64.b64decode(reply.image.partition(",")[2])))

    given = [caption, candidates, seed]
    gr.on([button.click, caption.submit], paint, given, painted, api_visibility="private")
    gr.Examples(
        [
            "a large red star in the centre",
            "a small green ring to the left of a large blue square",
            "a small yellow heart above a small purple cross",
        ],
        caption,
    )


#: What builds the tab of a function, by its name.
TABS: dict[str, Callable[[Service], None]] = {
    "search": _search_tab,
    "caption": _caption_tab,
    "ask": _ask_tab,
    "paint": _paint_tab,
}


def mount_page(app: FastAPI, service: Service, path: str = "/page") -> FastAPI:
    """Put the page under ``path``.

    Args:
        app: The application.
        service: What answers; a function without a tab is left out.
        path: Where the page is.

    Raises:
        ValueError: The service wants a token, which a browser has no way to send.
    """
    if service.settings.token is not None:
        raise ValueError("a service with a token has no page: a browser cannot send the token")
    folder = tempfile.TemporaryDirectory(prefix="mmlib-page-")
    app.state.page_folder = folder  # lives as long as the application
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    # Files older than five minutes are deleted, every minute.
    with gr.Blocks(title="mmlib", analytics_enabled=False, delete_cache=(60, 300)) as blocks:
        gr.Markdown("# What the chapters trained")
        for name, build in TABS.items():
            if name in service.functions:
                with gr.Tab(service.functions[name].title):
                    gr.Markdown(service.functions[name].summary)
                    build(service)
    return gr.mount_gradio_app(
        app,
        blocks,
        path,
        show_error=True,
        max_file_size=service.settings.max_bytes,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(**_FONTS),
    )


async def _ask(
    service: Service, name: str, fields: dict[str, Any], picture: str | None = None
) -> Any:
    """What the API would answer; a refusal is shown on the page."""
    function = service.functions[name]
    if function.takes_picture and picture is None:
        raise gr.Error("Choose a picture first.")
    try:
        request = function.request(**fields)
        if picture is None:
            return await service.answer(name, Job(request))
        kind, _ = mimetypes.guess_type(picture)
        return await service.answer_upload(name, request, Path(picture).read_bytes(), kind)
    except ValidationError as error:
        first = error.errors()[0]
        raise gr.Error(f"{first['loc'][0]}: {reason(first)}") from None
    except Refused as refused:
        raise gr.Error(refused.detail) from None


def _scene(seed: int) -> Image.Image:
    drawn = scenes.render(scenes.sample(1, seed=seed, objects=2, split="test"), 128)[0]
    return Image.fromarray((255 * drawn.permute(1, 2, 0).numpy()).round().astype(np.uint8))
