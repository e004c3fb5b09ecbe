"""Cards: a painting, where the model looks in it, and question, answer and prediction beneath."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from artkv.monitoring.attention_picture import Looks, overlays

_PICTURE_WIDTH = 448
_MARGIN = 10
_FONT_SIZE = 18
_LINE_HEIGHT = 24
_BLACK, _GREEN, _RED = (0, 0, 0), (0, 110, 30), (180, 20, 20)


@dataclass(frozen=True)
class AnsweredQuestion:
    """A painting, a question about it, the model's answer, and the true one and where the model looked if known."""

    picture: Image.Image
    question: str
    answer: str | None
    prediction: str
    looks: Looks | None = None


def draw_card(sample: AnsweredQuestion) -> NDArray[np.uint8]:
    """The painting, scaled to fit 448 x 896 pixels, over the wrapped texts; (height, width, 3) from 0 to 255.

    Beside it, where the sample has them, the overlays of `Looks`, each 448 pixels more. The prediction is green where
    it equals the answer but for case, else red.
    """
    picture = sample.picture.convert("RGB")
    # A tall scroll would put the texts out of sight: at most twice as high as wide.
    scale = min(_PICTURE_WIDTH / picture.width, 2 * _PICTURE_WIDTH / picture.height)
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    texts = [(f"Q: {sample.question}", _BLACK)]
    predicted = f"predicted: {sample.prediction or '(nothing)'}"
    if sample.answer is None:
        texts += [(predicted, _BLACK)]
    else:
        right = sample.prediction.strip().lower() == sample.answer.strip().lower()
        texts += [(f"answer: {sample.answer}", _BLACK), (predicted, _GREEN if right else _RED)]
    columns = [_column(picture, texts)]
    if sample.looks is not None:
        drawn = zip(overlays(picture, sample.looks), sample.looks.captions(), strict=True)
        columns += [_column(overlay, [(caption, _BLACK)]) for overlay, caption in drawn]
    canvas = Image.new("RGB", (_PICTURE_WIDTH * len(columns), max(column.height for column in columns)), "white")
    for place, column in enumerate(columns):
        canvas.paste(column, (_PICTURE_WIDTH * place, 0))
    return np.asarray(canvas)


def _column(picture: Image.Image, texts: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """A picture of at most 448 pixels' width over wrapped texts, each in its colour."""
    font, covers_all = _font()
    lines: list[tuple[str, tuple[int, int, int]]] = []
    for text, colour in texts:
        shown = text if covers_all else _without_accents(text)
        lines += [(line, colour) for line in wrap_text(shown, font, _PICTURE_WIDTH - 2 * _MARGIN)]
    canvas = Image.new("RGB", (_PICTURE_WIDTH, picture.height + 2 * _MARGIN + _LINE_HEIGHT * len(lines)), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (line, colour) in enumerate(lines):
        draw.text((_MARGIN, picture.height + _MARGIN + row * _LINE_HEIGHT), line, fill=colour, font=font)
    return canvas


def wrap_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of `text` no wider than `width` pixels, broken between words, or inside one that is too long."""
    lines = [""]
    for word in text.split():
        extended = f"{lines[-1]} {word}".lstrip()
        if font.getlength(extended) <= width:
            lines[-1] = extended
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _font() -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, bool]:
    """A readable font, and whether it has the accented letters that artists' names are full of."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", _FONT_SIZE), True
    except OSError:  # not on this system; Pillow's own font has ASCII only
        return ImageFont.load_default(_FONT_SIZE), False


def _without_accents(text: str) -> str:
    """`text` with ü as u and the like, and ? for what has no ASCII base letter; for drawing only."""
    letters = [letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)]
    return "".join(letter if letter.isascii() else "?" for letter in letters)
