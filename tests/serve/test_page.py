"""The page in a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artkv.serve.asking import AskedModel
from tests.browser import AXE, INSTALL, Tab
from tests.serve.conftest import Serve

HOSTILE = "<img src=x onerror=alert(1)></script><b>What?</b>"


class Visitor(Tab):
    """Somebody with the page open; what it complains about, and which other addresses it asks for."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        super().__init__(browser, (url, "data:", "blob:"), **context)
        self.page.goto(url)
        self.page.wait_for_selector("#bounds:not(:empty)")

    def ask(self, picture: Path | dict[str, Any] | None, question: str) -> None:
        """Returns when the reply or an error is there."""
        if picture is not None:
            self.page.set_input_files("#file", picture)
        self.page.fill("#question", question)
        self.page.click("#send")
        self.page.wait_for_selector("#reply:not([hidden]) .column, #error:not([hidden])")

    def error(self) -> str:
        return self.page.locator("#error").inner_text()


@pytest.fixture
def visitor(browser: Any, serve: Serve, asked_model: AskedModel) -> Iterator[Visitor]:
    visitor = Visitor(browser, serve(asked_model).url)
    yield visitor
    visitor.context.close()


def test_both_answers_stand_side_by_side_with_probabilities_and_maps(
    visitor: Visitor, asked_model: AskedModel, tiny_world: Path
) -> None:
    path = tiny_world / "images" / "val0.png"
    visitor.ask(path, "What is thing 0?")
    page, session = visitor.page, asked_model.session
    columns = page.locator(".column").all()
    assert len(columns) == 3
    tops = page.evaluate("[...document.querySelectorAll('.column')].map((one) => one.offsetTop)")  # the page scrolls
    assert len(set(tops)) == 1
    for column, caption, use_prefix in zip(columns, ("prefix on (", "prefix off"), (True, False), strict=False):
        (answer,) = session.answers(path, ["What is thing 0?"], use_prefix)
        text = column.inner_text()
        assert text.startswith(caption)
        assert (answer.text or "(nothing)") in text
        assert f"probability {answer.probability:.3f}, {answer.token_probability:.3f} a token" in text
    assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert "run/step_00000008" in page.inner_text("header")
    same = session.ask(path, "What is thing 0?") == session.ask(path, "What is thing 0?", use_prefix=False)
    assert page.inner_text("#difference") == f"The prefix {'does not change' if same else 'changes'} the answer."
    assert visitor.complaints == []


def test_a_painting_can_be_dropped(visitor: Visitor) -> None:
    visitor.page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 30 });
          const blob = await new Promise((done) => canvas.toBlob(done));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([blob], "dropped.png"));
          document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }"""
    )
    assert visitor.page.inner_text("#chosen") == "dropped.png"
    visitor.page.wait_for_selector("#preview:not([hidden])")
    visitor.ask(None, "What?")
    assert visitor.page.locator(".column").count() == 3
    assert visitor.complaints == []


def test_markup_in_a_question_and_in_a_files_name_stays_text(visitor: Visitor, tiny_world: Path) -> None:
    content = (tiny_world / "images" / "val0.png").read_bytes()
    visitor.ask({"name": HOSTILE, "mimeType": "image/png", "buffer": content}, HOSTILE)
    assert visitor.page.inner_text("#asked") == HOSTILE
    assert visitor.page.inner_text("#chosen") == HOSTILE
    assert visitor.page.locator("#asked b, #asked img, #chosen *").count() == 0
    assert visitor.complaints == []


def test_what_is_wrong_is_a_message_in_the_page_and_the_next_question_is_answered(
    visitor: Visitor, tiny_world: Path
) -> None:
    visitor.ask(None, "What?")
    assert visitor.error() == "Choose a painting first."
    visitor.ask({"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG and no more"}, "What?")
    assert visitor.error().startswith("picture as uploaded: not a picture of a known format")
    assert visitor.page.locator("#preview").is_hidden()
    visitor.ask(None, " ")
    assert visitor.error() == "Type a question."
    # The browser itself notes an answer of 400.
    assert [text for text in visitor.complaints if "400 (Bad Request)" not in text] == []
    visitor.ask(tiny_world / "images" / "val0.png", "What is thing 0?")
    assert visitor.page.locator("#error").is_hidden()
    assert visitor.page.locator(".column").count() == 3


def test_too_large_a_file_is_not_even_sent(visitor: Visitor, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    visitor.ask(large, "What?")
    assert visitor.error() == "the file has 64.0 MiB, of 64 at most; scale it down"
    assert visitor.complaints == []


def test_a_control_shows_one_answer_and_says_why(
    browser: Any, serve: Serve, asked_control: AskedModel, tiny_world: Path
) -> None:
    visitor = Visitor(browser, serve(asked_control).url)
    visitor.ask(tiny_world / "images" / "val0.png", "What is thing 0?")
    assert visitor.page.locator(".column").count() == 2  # the answer's, and the picture
    assert visitor.page.inner_text("#difference") == "The model was trained without a prefix, and has one answer."
    assert "A control, which has no prefix: control/step_00000008" in visitor.page.inner_text("header")
    visitor.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nobody_is_shut_out(
    scheme: str, width: int, browser: Any, serve: Serve, asked_model: AskedModel, tiny_world: Path
) -> None:
    viewport = {"width": width, "height": 844}
    visitor = Visitor(browser, serve(asked_model).url, viewport=viewport, color_scheme=scheme, bypass_csp=True)
    visitor.ask(tiny_world / "images" / "val0.png", "What is thing 0?")
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if not AXE.exists():
        pytest.skip(f"needs axe-core: {INSTALL}")
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run().then((result) => result.violations.map((one) => [one.id, one.help]))")
    assert found == []
    visitor.context.close()
