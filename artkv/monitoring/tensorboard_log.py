"""TensorBoard: curves, the run's settings, and paintings with question, answer and prediction beneath.

Its first page shows groups of tags in the order of the alphabet, so the groups' names put what is learnt first, then
what the machine did (`vitals`), then pictures (`works`).
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from artkv.monitoring.attention_picture import Looks, overlays

# What tells of the machine and not of the model.
_VITALS = {
    "questions_per_second", "paintings_per_second", "step_seconds", "step_seconds_max", "data_wait_share",
    "own_step_seconds", "own_step_seconds_max", "slowest_rank", "skipped_steps", "peak_host_gib", "peak_device_gib",
}  # fmt: skip
# Metrics whose names begin so are a group of their own.
_GROUPS = ("attention", "grad_norm", "update_to_weight")
_PICTURE_WIDTH = 448
_MARGIN = 10
_FONT_SIZE = 18
_LINE_HEIGHT = 24
_BLACK, _GREEN, _RED = (0, 0, 0), (0, 110, 30), (180, 20, 20)


@dataclass(frozen=True)
class AnsweredQuestion:
    """A painting, a question about it, the true answer and the model's, and where it looked if that is known."""

    picture: Image.Image
    question: str
    answer: str
    prediction: str
    looks: Looks | None = None


def tag_of(kind: str, name: str) -> str:
    """The tag of a metric of metrics.jsonl; kind: train or validation."""
    if name in _VITALS:
        return f"vitals/{name}"
    group, slash, _ = name.partition("/")
    return name if slash and group in _GROUPS else f"{kind}/{name}"


class TensorBoardLog:
    """Writes event files into the run's folder itself, where `tensorboard --logdir outputs` finds them.

    `purge_step`: on a resume, the first step that will be written again; TensorBoard then hides what
    an earlier process wrote for this and later steps. None for a fresh start.
    """

    def __init__(self, run_dir: str | Path, purge_step: int | None = None) -> None:
        self._writer = SummaryWriter(log_dir=str(run_dir), purge_step=purge_step)
        self._settings_end: Any = None

    def scalars(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Writes each metric under the tag that `tag_of` gives it."""
        for name, value in metrics.items():
            self._writer.add_scalar(tag_of(kind, name), value, step)

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        """Writes how the values are spread."""
        self._writer.add_histogram(tag, values, step)

    def samples(self, step: int, samples: Sequence[AnsweredQuestion]) -> None:
        """Draws each sample under the tag `works/0`, `works/1`, ...; give the same ones each time."""
        for position, sample in enumerate(samples):
            self._writer.add_image(f"works/{position}", draw_sample(sample), step, dataformats="HWC")

    def settings(self, settings: Mapping[str, bool | float | str], metric: str) -> None:
        """Begins the run's line in the table of runs, whose column `metric` shows that tag's last value."""
        experiment, beginning, self._settings_end = hparams(dict(settings), {metric: 0.0})
        self._writer._get_file_writer().add_summary(experiment)
        self._writer._get_file_writer().add_summary(beginning)

    def finished(self) -> None:
        """Says in the table of runs that the run is finished."""
        self._writer._get_file_writer().add_summary(self._settings_end)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Writes preformatted text, such as the resolved config."""
        # Markdown's indented block: unlike a fence, no content can end it.
        self._writer.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def flush(self) -> None:
        """Writes what is still queued to the event file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


def draw_sample(sample: AnsweredQuestion) -> NDArray[np.uint8]:
    """The painting, scaled to fit 448 x 896 pixels, over the wrapped texts; (height, width, 3) from 0 to 255.

    Beside it, where the sample has them, the overlays of `Looks`, each 448 pixels more. The prediction is green where
    it equals the answer but for case, else red.
    """
    picture = sample.picture.convert("RGB")
    # A tall scroll would put the texts out of sight: at most twice as high as wide.
    scale = min(_PICTURE_WIDTH / picture.width, 2 * _PICTURE_WIDTH / picture.height)
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    right = sample.prediction.strip().lower() == sample.answer.strip().lower()
    texts = [
        (f"Q: {sample.question}", _BLACK),
        (f"answer: {sample.answer}", _BLACK),
        (f"predicted: {sample.prediction or '(nothing)'}", _GREEN if right else _RED),
    ]
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
