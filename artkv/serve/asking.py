"""Answers a question about an uploaded picture, with the prefix and without, and draws where the model looks."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from artkv.datasets.decoding import PICTURE_FORMATS
from artkv.datasets.pictures import open_picture
from artkv.errors import UserError
from artkv.evaluation.attention import looks_of
from artkv.monitoring.attention_picture import overlays
from artkv.session import Session

MAX_QUESTION = 500  # characters
# What one request may take of the host: its file, and 300 MB as RGB. A museum's scan can be scaled down; the ViT sees
# 224 x 224 pixels of it.
MAX_UPLOAD_BYTES = 64 * 2**20
MAX_UPLOAD_PIXELS = 100_000_000
_EDGE = 640  # of the pictures that are sent back


@dataclass(frozen=True)
class Facts:
    """What the page has to know of the model.

    name: of the checkpoint, without the folders above its run. formats: of pictures, as PIL names them.
    """

    name: str
    has_prefix: bool
    max_question: int = MAX_QUESTION
    max_bytes: int = MAX_UPLOAD_BYTES
    max_pixels: int = MAX_UPLOAD_PIXELS
    formats: tuple[str, ...] = PICTURE_FORMATS


@dataclass(frozen=True)
class Column:
    """An answer, as `artkv ask` gives it, over where the model looks.

    caption: of the map. map: as a PNG in a data URL, drawn as `artkv ask --attention` does.
    """

    caption: str
    answer: str
    probability: float
    token_probability: float
    map: str


@dataclass(frozen=True)
class Reply:
    """What the page shows. picture: as it was decoded, a PNG in a data URL. columns: prefix on, off, or none."""

    question: str
    picture: str
    columns: list[Column]


@dataclass(frozen=True)
class AskedModel:
    """A loaded model that strangers ask. name: of the checkpoint, to be shown."""

    session: Session
    name: str

    def facts(self) -> Facts:
        return Facts(self.name, self.session.model.has_prefix)

    def reply(self, content: bytes, question: str) -> Reply:
        """The answers to a question about a picture's bytes; `UserError` if either is wrong or too large."""
        question = checked_question(question)
        picture = open_picture("as uploaded", content, MAX_UPLOAD_PIXELS)
        has_prefix = self.session.model.has_prefix
        features = self.session.encode(picture)
        ways = [True, False] if has_prefix else [False]
        answers = [answer for (answer,) in self.session.answers_by_prefix(features, [question], ways)]
        looks = looks_of(self.session.attention(features), has_prefix)
        picture.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
        drawn = zip(answers, looks.captions(), overlays(picture, looks), strict=True)
        columns = [
            Column(caption, answer.text, answer.probability, answer.token_probability, _data_url(overlay))
            for answer, caption, overlay in drawn
        ]
        return Reply(question, _data_url(picture), columns)


def checked_question(question: str) -> str:
    """The question without space around it; `UserError` if it is empty or too long."""
    question = question.strip()
    if not question:
        raise UserError("the question is empty; type one, such as: Which style is this?")
    if len(question) > MAX_QUESTION:
        raise UserError(f"the question has {len(question):,} characters, of {MAX_QUESTION} at most; shorten it")
    return question


def _data_url(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
