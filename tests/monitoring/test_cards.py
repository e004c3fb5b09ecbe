"""Cards of answered questions: picture, overlays, wrapped texts, colours."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from artkv.monitoring import cards
from artkv.monitoring.attention_picture import Looks, overlays
from artkv.monitoring.cards import AnsweredQuestion, draw_card, wrap_text

SAMPLE = AnsweredQuestion(
    Image.new("RGB", (200, 100), (10, 20, 200)), "Who painted this?", "Albrecht Dürer", "albrecht dürer"
)


def test_sample_shows_picture_above_text() -> None:
    drawn = draw_card(SAMPLE)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1:] == (448, 3)
    assert (drawn[:224] == (10, 20, 200)).all()  # 200 x 100 scaled to 448 x 224
    text = drawn[224:]
    assert (text.min(axis=(1, 2)) < 100).any()  # dark strokes on white
    assert (text[0] == 255).all()
    assert text.shape[0] == 2 * 10 + 3 * 24  # three texts, a line each


def test_prediction_is_green_when_right_and_red_when_wrong() -> None:
    def coloured(prediction: str) -> tuple[bool, bool]:
        drawn = draw_card(AnsweredQuestion(SAMPLE.picture, "q", "oil", prediction))[224:].astype(int)
        red, green = drawn[..., 0], drawn[..., 1]
        return bool((green - red > 80).any()), bool((red - green > 80).any())

    assert coloured("OIL") == (True, False)
    assert coloured("tempera") == (False, True)
    assert coloured("") == (False, True)


def test_odd_pictures_and_long_texts_are_drawn_whole() -> None:
    tall = AnsweredQuestion(Image.new("L", (10, 4000)), "long words " * 60, "a" * 300, "日本 \n\t line")
    drawn = draw_card(tall)
    assert drawn.shape[0] > 896 + 15 * 24
    flat = draw_card(AnsweredQuestion(Image.new("RGBA", (5000, 3)), "q", "a", "p"))
    assert flat.shape == (1 + 2 * 10 + 3 * 24, 448, 3)


def test_wrapping_keeps_every_word_within_the_width() -> None:
    font = ImageFont.load_default(18)
    text = "Question about " + "w" * 120 + " and some more words that follow it"
    lines = wrap_text(text, font, 200)
    assert max(font.getlength(line) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap_text("short", font, 200) == ["short"]


def test_without_a_system_font_accents_are_folded_rather_than_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "_font", lambda: (ImageFont.load_default(18), False))
    accented = draw_card(AnsweredQuestion(SAMPLE.picture, "q", "Dürer", "Dürer"))
    plain = draw_card(AnsweredQuestion(SAMPLE.picture, "q", "Durer", "Durer"))
    np.testing.assert_array_equal(accented, plain)


def test_overlays_stand_beside_the_picture_over_their_captions() -> None:
    looks = Looks(np.array([[0.7, 0.1], [0.1, 0.1]]), np.array([[0.1, 0.1], [0.1, 0.7]]), mass=0.25)
    drawn = draw_card(AnsweredQuestion(SAMPLE.picture, "q", "a", "p", looks))
    alone = draw_card(AnsweredQuestion(SAMPLE.picture, "q", "a", "p"))
    assert drawn.shape == (alone.shape[0], 3 * 448, 3)
    np.testing.assert_array_equal(drawn[:, :448], alone)
    for place, overlay in enumerate(overlays(SAMPLE.picture.resize((448, 224)), looks), start=1):
        column = drawn[:, 448 * place : 448 * (place + 1)]
        np.testing.assert_array_equal(column[:224], np.asarray(overlay))
        assert column[224:].min() < 100  # its caption


def test_without_a_true_answer_the_prediction_is_black() -> None:
    drawn = draw_card(AnsweredQuestion(SAMPLE.picture, "q", None, "oil"))[224:].astype(int)
    assert drawn.shape[0] == 2 * 10 + 2 * 24
    assert abs(drawn[..., 0] - drawn[..., 1]).max() == 0
