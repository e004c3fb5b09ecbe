"""Decodes picture files that anybody may have made: of known formats, within bounds, a few large ones at a time."""

import ctypes
import io
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from artkv.datasets.picture_files import open_picture_file
from artkv.errors import UserError
from artkv.file_kinds import PICTURE, START_BYTES, kind_of_file
from artkv.reading import printable, remedy_for

# The default of dataset.max_pixels. Museum scans of 200 million pixels are real. PIL keeps 4 bytes a pixel.
MAX_PIXELS = 300_000_000
# PIL knows some forty more, most of them tried by nobody, and hands EPS files to Ghostscript, which runs them.
PICTURE_FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM",
    *(["JPEG2000"] if features.check("jpg_2000") else []), *(["AVIF"] if features.check("avif") else []),
)  # fmt: skip

# What names of picture files end with.
PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".jp2", ".j2k", ".avif")
)

# Decoded, turned and converted at once, and what the decoder itself keeps: 8 bytes a pixel of 16-bit colour.
_BYTES_A_PIXEL = 16
# Eight threads that each decode 30 million pixels have room beside one another.
_BYTES_AT_ONCE = 4 * 2**30
# A file of more bytes than uncompressed 16-bit colour with alpha, and this, is no picture within the limit.
_BYTES_BESIDE_PIXELS = 64 * 2**20
_PIXELS_A_STRIP = 2**20
_MOST_REASON = 300

_EXIF_ORIENTATION = 0x0112
_TURN_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REPLACE = "replace the file with an undamaged copy"
_CONVERT = "convert it to an 8-bit RGB PNG or JPEG"

# Of a file's oddities PIL warns again and again; what keeps it from being read is an error here.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def _silence_libtiff() -> None:
    """Has libtiff, which PIL brings along, print nothing: it writes a line a damaged row past Python to stderr."""
    bundled = (Path(Image.__file__).parents[1] / "pillow.libs").glob("libtiff*.so*")
    for name in [*map(str, bundled), "libtiff.so.6", "libtiff.so.5"]:
        with suppress(OSError, AttributeError):  # OSError: PIL has another, or none
            libtiff = ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
            libtiff.TIFFSetErrorHandler(None)
            libtiff.TIFFSetWarningHandler(None)


_silence_libtiff()


class Room:
    """Bytes that pictures may take at once; whoever needs more than there are waits until he is alone.

    First come, first served: a large picture is not passed by small ones for ever.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self.clear()

    def clear(self) -> None:
        """As at the beginning, with all the room."""
        self._taken = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[None]:
        """Waits for the bytes, and has them inside. Not to be nested."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._has_room(num_bytes))
                self._taken += num_bytes
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= num_bytes
                self._changed.notify_all()

    def _has_room(self, num_bytes: int) -> bool:
        return self._taken == 0 or self._taken + num_bytes <= self._most


_room = Room(_BYTES_AT_ONCE)
# A forked process has none of the threads that may have held it.
os.register_at_fork(after_in_child=_room.clear)


@contextmanager
def decoded(
    path: Path | str, content: bytes | None = None, max_pixels: int = MAX_PIXELS, small: bool = False
) -> Iterator[Image.Image]:
    """A picture as 8-bit RGB, the right way up, to be used inside and let go of: it counts among what is in memory.

    Transparent parts come out white; 16-bit pictures are scaled over their full range, not clipped. Of a file with
    several frames it is the first.

    content: the file's bytes, where they were read before. max_pixels: more are not decoded. small: whether an eighth
    of a JPEG's size will do.

    Raises `UserError` with the file's name and a remedy for anything that cannot be decoded to its end.
    """
    with ExitStack() as held:
        yield _decode(Path(path), content, max_pixels, small, held)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture as 8-bit RGB, turned as its EXIF says, transparency on white; see `decoded`."""
    turn = _TURN_OF_ORIENTATION.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    rgb = _as_rgb(image)
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info.clear()  # with the orientation in it, the result would be turned once more if it were handed in again
    return upright


def _decode(path: Path, content: bytes | None, max_pixels: int, small: bool, held: ExitStack) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries switch it on; half a painting is grey below
    if Image.MAX_IMAGE_PIXELS is not None:  # PIL's own guard, which would refuse what the settings allow
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        with _opened(path, content, max_pixels) as file, Image.open(file, formats=PICTURE_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            if small and image.format == "JPEG":
                image.draft(None, (1, 1))
            held.enter_context(_room.take(image.width * image.height * _BYTES_A_PIXEL))
            # The orientation is read after loading: TIFFs are turned while they load, PNGs may tell it last.
            image.load()
            return upright_rgb(image)
    except UserError as error:
        problem = str(error)
    except UnidentifiedImageError:
        # Whole in a format of another kind, or with a beginning that is lost.
        kind = _other_kind(path, content)
        what = "not a picture" if kind is None else f"is {kind}, and no picture"
        problem = f"{what} of a known format ({', '.join(PICTURE_FORMATS)}); convert it to one, or {_REPLACE}"
    except Image.DecompressionBombError:
        remedy = "scale it down, or raise dataset.max_pixels" if content is None else "scale it down"
        problem = f"more than {max_pixels:,} pixels; {remedy}"
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        problem = f"damaged ({printable(error)[:_MOST_REASON] or type(error).__name__}); {_REPLACE}"
    raise UserError(f"picture {printable(path)}: {problem}") from None


def _other_kind(path: Path, content: bytes | None) -> str | None:
    """What a file that PIL does not know is instead, by its first bytes; None where these do not tell."""
    if content is None:
        with suppress(OSError), open_picture_file(path) as opened:
            content = opened.file.read(START_BYTES)
    kind = kind_of_file(content or b"")
    return None if kind == PICTURE else kind


@contextmanager
def _opened(path: Path, content: bytes | None, max_pixels: int) -> Iterator[IO[bytes]]:
    """The file, or its bytes, of which there are some and not too many."""
    most_bytes = 8 * max_pixels + _BYTES_BESIDE_PIXELS
    with ExitStack() as held:
        try:
            opened = None if content is not None else held.enter_context(open_picture_file(path))
        except FileNotFoundError:
            raise UserError("no such file; put it back") from None
        except OSError as error:
            remedy = remedy_for(error, "put a picture there")
            raise UserError(f"cannot be read ({error.strerror}); {remedy}") from None
        num_bytes = len(content or b"") if opened is None else opened.num_bytes
        if num_bytes == 0:
            raise UserError(f"an empty file (0 bytes); {_REPLACE}")
        if num_bytes > most_bytes:
            raise UserError(f"a file of {num_bytes:,} bytes, more than {max_pixels:,} pixels have; scale it down")
        yield io.BytesIO(content or b"") if opened is None else opened.file


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_grey_as_rgb(image)
    if image.has_transparency_data:
        rgb = Image.new("RGB", image.size)
        for top, bottom in _strips(image):
            strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
            opaque = Image.new("RGBA", strip.size, "white")
            opaque.alpha_composite(strip)
            rgb.paste(opaque.convert("RGB"), (0, top))
        return rgb
    return image.convert("RGB")


def _deep_grey_as_rgb(image: Image.Image) -> Image.Image:
    """Scales grey of more than 8 bits to 8; PIL's own conversion clips at 255, which gives white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise UserError(f"floating-point grey from {low} to {high}, expected 0 to 1; {_CONVERT}")
    # Mode I holds 16-bit PNGs and PGMs, but also 32-bit TIFFs, whose white could be anywhere.
    elif image.mode == "I" and not (low >= 0 and 255 < high <= 65535):
        raise UserError(f"32-bit grey from {low} to {high}, expected 16 bits; {_CONVERT}")
    grey = np.empty(values.shape, dtype=np.uint8)
    for top, bottom in _strips(image):
        strip = values[top:bottom]
        # 65535 = 255 * 257
        grey[top:bottom] = np.rint(strip * 255 if image.mode == "F" else strip / 257)
    return Image.fromarray(grey).convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Rows (top, bottom) of parts of a picture: what is computed of one is small beside the whole."""
    rows = max(1, _PIXELS_A_STRIP // image.width)
    return ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))
