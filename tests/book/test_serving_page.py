"""The service's page in a real browser: search, upload, answer, and an error that is shown.

``NO_BROWSER=1`` leaves these tests out.
"""

import os
import threading
import time

import pytest
from PIL import Image

if os.environ.get("NO_BROWSER", "") not in ("", "0"):
    pytest.skip("NO_BROWSER is set", allow_module_level=True)

from mmlib.data import scenes
from mmlib.serving.app import create_app, server
from mmlib.serving.functions import png_url
from mmlib.serving.image_search import ImageSearch, Match, SearchReply
from mmlib.serving.page import TABS, mount_page
from mmlib.serving.scene_caption import SceneCaption
from mmlib.serving.scene_painting import PaintingReply, ScenePainting
from mmlib.serving.scene_questions import SceneQuestions
from mmlib.serving.settings import Settings


class FewWords(ImageSearch):
    """The tab's own requests and replies, without the weights."""

    def load(self):
        pass

    def run(self, jobs):
        image = "data:image/png;base64,iVBORw0KGgo="
        return [
            SearchReply(
                results=[
                    Match(name=f"{job.request.query} {i}", name_zh="", score=0.5, image=image)
                    for i in range(job.request.count)
                ]
            )
            for job in jobs
        ]


class OneColour(ScenePainting):
    """Likewise: paints the whole picture in the seed's grey."""

    def load(self):
        pass

    def run(self, jobs):
        return [
            PaintingReply(image=png_url(Image.new("RGB", (32, 32), (job.request.seed,) * 3)))
            for job in jobs
        ]


def start(**options):
    """A running service with its page: the server, its thread, its address."""
    functions = [FewWords(), SceneCaption(), SceneQuestions(), OneColour()]
    app = create_app(functions, Settings(**options), mount_page=mount_page)
    running = server(app, "127.0.0.1", 0, grace=2.0)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not (running.started and app.state.service.state == "ready"):
        assert thread.is_alive()
        time.sleep(0.02)
    port = running.servers[0].sockets[0].getsockname()[1]
    return running, thread, f"http://127.0.0.1:{port}/page"


@pytest.fixture(scope="module")
def address():
    running, thread, url = start(max_pixels=1_000_000)
    yield url
    running.should_exit = True
    thread.join()


@pytest.fixture
def page(browser, address):
    """The page, and whatever it asked of other machines."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.elsewhere = []
    host = address.removesuffix("/page")
    page.on("request", lambda r: None if r.url.startswith((host, "data:", "blob:")) else
            page.elsewhere.append(r.url))  # fmt: skip
    page.goto(address)
    page.get_by_role("tab", name="Image search").wait_for()
    yield page
    context.close()


@pytest.fixture
def picture(tmp_path):
    """A scene as a file, and its caption."""
    (scene,) = scenes.sample(1, seed=0, objects=1)
    pixels = (scenes.render([scene], 64)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    return tmp_path / "scene.png", scenes.caption(scene)


def choose(page, tab):
    """Go to a tab; gives what is seen of it."""
    page.get_by_role("tab", name=tab).click()
    return page.locator("[role=tabpanel]:visible")


def wait_text(page, start):
    page.wait_for_function(
        "want => [...document.querySelectorAll('textarea')].some(e => e.value.startsWith(want))",
        arg=start,
    )


EXAMPLES = {
    "Image search": "a red fruit",
    "Captioning": None,  # pictures
    "Question answering": "how many objects are there?",
    "Text to image": "a large red star in the centre",
}


def test_there_is_a_tab_with_examples_for_each_function(page):
    tabs = page.get_by_role("tab")
    assert tabs.all_inner_texts() == list(EXAMPLES)
    assert len(TABS) == tabs.count()
    for tab, text in EXAMPLES.items():
        panel = choose(page, tab)
        panel.get_by_text("Examples").first.wait_for()
        if text:
            panel.get_by_text(text).first.wait_for()


def test_it_asks_nothing_of_other_machines(page):
    page.wait_for_load_state("networkidle")
    assert page.elsewhere == []


def test_a_question_is_answered(page):
    page.get_by_label("Sentence").fill("a small dog")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("a small dog 0 0.50").wait_for()


def test_an_example_fills_the_field(page):
    page.get_by_text("an animal that lives in the sea").first.click()
    page.wait_for_function(
        "document.querySelector('textarea').value == 'an animal that lives in the sea'"
    )


def test_an_upload_is_described(page, picture):
    path, caption = picture
    panel = choose(page, "Captioning")
    panel.locator("input[type=file]").set_input_files(path)
    panel.get_by_role("button", name="Describe").click()
    wait_text(page, caption)


def test_a_question_about_an_upload_is_answered(page, picture):
    path, caption = picture
    panel = choose(page, "Question answering")
    panel.locator("input[type=file]").set_input_files(path)
    panel.get_by_label("Question").fill("what shape is there?")
    panel.get_by_role("button", name="Ask").click()
    wait_text(page, next(shape for shape in scenes.SHAPES if shape in caption))


def test_a_caption_is_painted(page):
    panel = choose(page, "Text to image")
    panel.get_by_label("Description").fill("a small red star")
    panel.get_by_role("button", name="Paint").click()
    panel.locator("img[src*='/file=']").first.wait_for()


def test_errors_are_shown(page):
    page.get_by_role("button", name="Search").click()
    page.get_by_text("query: String should have at least 1 character").wait_for()
    panel = choose(page, "Captioning")
    panel.get_by_role("button", name="Describe").click()
    page.get_by_text("Choose a picture first.").wait_for()
    panel = choose(page, "Text to image")
    panel.get_by_label("Description").fill("a small cat")
    panel.get_by_role("button", name="Paint").click()
    page.get_by_text("never saw the word 'cat'").wait_for()


def test_a_picture_that_is_too_large_is_refused(page, tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (2000, 2000)).save(path)
    panel = choose(page, "Captioning")
    panel.locator("input[type=file]").set_input_files(path)
    panel.get_by_role("button", name="Describe").click()
    page.get_by_text("2000 × 2000 pixels").wait_for()


def test_there_is_no_page_where_a_token_is_wanted():
    with pytest.raises(ValueError, match="token"):
        create_app([FewWords()], Settings(token="x"), mount_page=mount_page)
