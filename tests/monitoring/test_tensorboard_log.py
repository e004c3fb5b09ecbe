"""Event files read back with TensorBoard's own reader."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from artkv.monitoring import tensorboard_log
from artkv.monitoring.tensorboard_log import AnsweredQuestion, TensorBoardLog, draw_sample, wrap_text

SAMPLE = AnsweredQuestion(
    Image.new("RGB", (200, 100), (10, 20, 200)), "Who painted this?", "Albrecht Dürer", "albrecht dürer"
)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def test_scalars_pictures_and_text_can_be_read_back(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.scalars(10, "train", {"loss": 0.5, "learning_rate": 1e-4})
    log.scalars(20, "train", {"loss": 0.25, "learning_rate": 5e-5})
    log.samples(20, [SAMPLE, SAMPLE])
    log.text("config", "model:\n  dtype: auto\n")
    log.close()
    events = read(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 0.5), (20, 0.25)]
    assert set(events.Tags()["images"]) == {"works/0", "works/1"}
    (image,) = events.Images("works/0")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(pixels, draw_sample(SAMPLE))
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    model:\n      dtype: auto"


def test_event_file_lies_in_the_folder_itself(tmp_path: Path) -> None:
    TensorBoardLog(tmp_path).close()
    assert [path.name.startswith("events.out.tfevents.") for path in tmp_path.iterdir()] == [True]


def test_a_restart_hides_what_it_writes_again(tmp_path: Path) -> None:
    first = TensorBoardLog(tmp_path)
    for step in (10, 20, 30):
        first.scalars(step, "train", {"loss": float(step)})
    first.close()
    # The reader takes event files in the order of their names, which begin with the second of writing.
    (written,) = tmp_path.iterdir()
    earlier = "events.out.tfevents.1000000000.host.1.0"
    written.rename(tmp_path / earlier)
    second = TensorBoardLog(tmp_path, purge_step=21)
    second.scalars(30, "train", {"loss": -1.0})
    second.close()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("train/loss")] == [
        (10, 10.0), (20, 20.0), (30, -1.0),
    ]  # fmt: skip


def test_sample_shows_picture_above_text() -> None:
    drawn = draw_sample(SAMPLE)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1:] == (448, 3)
    assert (drawn[:224] == (10, 20, 200)).all()  # 200 x 100 scaled to 448 x 224
    text = drawn[224:]
    assert (text.min(axis=(1, 2)) < 100).any()  # dark strokes on white
    assert (text[0] == 255).all()
    assert text.shape[0] == 2 * 10 + 3 * 24  # three texts, a line each


def test_prediction_is_green_when_right_and_red_when_wrong() -> None:
    def coloured(prediction: str) -> tuple[bool, bool]:
        drawn = draw_sample(AnsweredQuestion(SAMPLE.picture, "q", "oil", prediction))[224:].astype(int)
        red, green = drawn[..., 0], drawn[..., 1]
        return bool((green - red > 80).any()), bool((red - green > 80).any())

    assert coloured("OIL") == (True, False)
    assert coloured("tempera") == (False, True)
    assert coloured("") == (False, True)


def test_odd_pictures_and_long_texts_are_drawn_whole() -> None:
    tall = AnsweredQuestion(Image.new("L", (10, 4000)), "long words " * 60, "a" * 300, "日本 \n\t line")
    drawn = draw_sample(tall)
    assert drawn.shape[0] > 896 + 15 * 24
    flat = draw_sample(AnsweredQuestion(Image.new("RGBA", (5000, 3)), "q", "a", "p"))
    assert flat.shape == (1 + 2 * 10 + 3 * 24, 448, 3)


def test_wrapping_keeps_every_word_within_the_width() -> None:
    font = ImageFont.load_default(18)
    text = "Question about " + "w" * 120 + " and some more words that follow it"
    lines = wrap_text(text, font, 200)
    assert max(font.getlength(line) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap_text("short", font, 200) == ["short"]


def test_without_a_system_font_accents_are_folded_rather_than_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_log, "_font", lambda: (ImageFont.load_default(18), False))
    accented = draw_sample(AnsweredQuestion(SAMPLE.picture, "q", "Dürer", "Dürer"))
    plain = draw_sample(AnsweredQuestion(SAMPLE.picture, "q", "Durer", "Durer"))
    np.testing.assert_array_equal(accented, plain)
