"""What is said about an upload, beside what a Session says of the same file."""

import base64
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artkv.datasets.pictures import open_picture
from artkv.errors import UserError
from artkv.evaluation.attention import looks_of
from artkv.monitoring.attention_picture import overlays
from artkv.serve.asking import MAX_QUESTION, AskedModel, checked_question


def pixels(url: str) -> np.ndarray:
    start = "data:image/png;base64,"
    assert url.startswith(start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix(start)))))


def test_the_answers_are_the_sessions_with_the_prefix_and_without(asked_model: AskedModel, tiny_world: Path) -> None:
    path, session = tiny_world / "images" / "val0.png", asked_model.session
    reply = asked_model.reply(path.read_bytes(), " What is thing 0? ")
    assert reply.question == "What is thing 0?"
    assert asked_model.facts().has_prefix
    assert [column.caption.split(" (")[0] for column in reply.columns] == ["prefix on", "prefix off"]
    picture = open_picture(path)
    drawn = overlays(picture, looks_of(session.attention(path), True))
    for column, use_prefix, overlay in zip(reply.columns, (True, False), drawn, strict=True):
        (answer,) = session.answers(path, ["What is thing 0?"], use_prefix)
        assert column.answer == answer.text
        # fp32, in one batch with the other: the worst seen is 1e-6 relative.
        found = (column.probability, column.token_probability)
        assert found == pytest.approx((answer.probability, answer.token_probability), rel=3e-5)
        np.testing.assert_array_equal(pixels(column.map), np.asarray(overlay))  # 48 x 40 is not scaled
    assert reply.columns[0].probability != reply.columns[1].probability
    np.testing.assert_array_equal(pixels(reply.picture), np.asarray(picture))


def test_a_control_has_one_answer(asked_control: AskedModel, tiny_world: Path) -> None:
    path = tiny_world / "images" / "val0.png"
    reply = asked_control.reply(path.read_bytes(), "What is thing 0?")
    (column,), (answer,) = reply.columns, asked_control.session.answers(path, ["What is thing 0?"])
    assert (column.caption, column.answer, column.probability) == ("no prefix", answer.text, answer.probability)
    assert not asked_control.facts().has_prefix


def test_a_turned_photograph_is_turned_once_and_large_ones_come_back_small(asked_model: AskedModel) -> None:
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 256, (40, 80, 3), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 8  # "turn by 90 degrees against the clock"
    stored, plain = io.BytesIO(), io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_270).save(stored, "PNG", exif=exif)
    upright.save(plain, "PNG")
    turned, straight = (asked_model.reply(file.getvalue(), "What?") for file in (stored, plain))
    assert turned == straight
    assert pixels(straight.picture).shape == (320, 640, 3)
    assert pixels(straight.columns[0].map).shape == (320, 640, 3)


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG that says it is so large, and hardly anything after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", b"x")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (
            b"<html>404</html>",
            r"is a web page, and no picture of a known format \(JPEG, PNG, .*\); convert it to one, or replace",
        ),
        (EPS, "not a picture of a known format"),  # which PIL would have Ghostscript run
        (png_of(8, 8), "damaged .*; replace the file"),
        (png_of(10_001, 10_000), "more than 100,000,000 pixels; scale it down"),
        (png_of(60_000, 60_000), "more than 100,000,000 pixels; scale it down"),
    ],
)
def test_a_wrong_picture_is_one_message_without_a_path(content: bytes, message: str, asked_model: AskedModel) -> None:
    with pytest.raises(UserError, match=f"picture as uploaded: {message}") as told:
        asked_model.reply(content, "What?")
    assert "/" not in str(told.value)


@pytest.mark.parametrize(
    ("question", "message"),
    [(" \n", "the question is empty"), ("x" * (MAX_QUESTION + 1), "501 characters, of 500 at most; shorten it")],
)
def test_a_wrong_question_is_one_message(question: str, message: str, asked_model: AskedModel) -> None:
    with pytest.raises(UserError, match=message):
        asked_model.reply(b"", question)
    assert checked_question("x" * MAX_QUESTION) == "x" * MAX_QUESTION


def test_a_question_longer_than_the_language_model_reads_is_refused(asked_model: AskedModel, tiny_world: Path) -> None:
    with pytest.raises(UserError, match="the language model has room for 12.; shorten it"):
        asked_model.reply((tiny_world / "images" / "val0.png").read_bytes(), "qzx " * 120)
