"""Small JPEGs of the paintings, as many as the page has room for."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from artkv.datasets.pictures import open_picture
from artkv.datasets.shards import folder_of_names
from artkv.errors import UserError

# A card is 20 rem wide at most; twice the pixels of a wider one would halve how many pictures fit.
_EDGE = 320
_QUALITY = 72


@dataclass(frozen=True)
class Pictures:
    """The pictures inside a page.

    images: their names, as they were asked for. jpegs: in base64, in the same order. left_out: how many had no room, or
    were not wanted. missing: those that could not be read, with the reason.
    """

    images: Sequence[str]
    jpegs: Sequence[str]
    left_out: int
    missing: Sequence[str]


def take_pictures(images: Sequence[str], image_root: Path | None, most: int | None, most_bytes: int) -> Pictures:
    """The first of `images`, `most` of them at most, whose JPEGs in base64 have `most_bytes` together.

    images: paths, relative to `image_root` or absolute. Pictures that cannot be read are passed over and told.
    """
    taken: list[str] = []
    jpegs: list[str] = []
    missing: list[str] = []
    num_bytes = 0
    for image in images:
        if most is not None and len(taken) == most:
            break
        try:
            jpeg = _small_jpeg(image, image_root)
        except UserError as error:
            missing.append(str(error))
            continue
        if num_bytes + len(jpeg) > most_bytes:
            break
        num_bytes += len(jpeg)
        taken.append(image)
        jpegs.append(jpeg)
    return Pictures(taken, jpegs, len(images) - len(taken) - len(missing), missing)


def _small_jpeg(image: str, image_root: Path | None) -> str:
    """Base64 of the picture with its longer edge at most `_EDGE` pixels, without its metadata."""
    picture = open_picture(Path(image) if image_root is None else folder_of_names(image_root) / image)
    picture.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY, optimize=True)
    return base64.b64encode(content.getvalue()).decode("ascii")
