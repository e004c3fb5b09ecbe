"""Pictures that are none, or are made to do harm; questions to ask about them."""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.bad_inputs.cases import Area, BadInput, Make, Place


def _png(width: int, height: int, data: bytes = bytes(50)) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _saved(kind: str, mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, (40, 30)).save(content, kind)
    return content.getvalue()


def _world_with(place: Place) -> Path:
    """A folder of pictures of the case's own."""
    return place.copy("images")


def _with_comment() -> bytes:
    chunk = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9)
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return _saved("PNG")[:33] + framed + _saved("PNG")[33:]


def picture(content: bytes | Callable[[], bytes]) -> Make:
    """`artkv check` where this is one of the pictures."""

    def make(place: Place) -> list[str]:
        images = _world_with(place)
        (images / "train0.png").write_bytes(content() if callable(content) else content)
        return ["check", *place.config(f"dataset.image_root={images}")]

    return make


def _pipe(place: Place) -> list[str]:
    images = _world_with(place)
    (images / "train0.png").unlink()
    os.mkfifo(images / "train0.png")
    return ["check", *place.config(f"dataset.image_root={images}")]


def _link(target: str) -> Make:
    def make(place: Place) -> list[str]:
        images = _world_with(place)
        (images / "train0.png").unlink()
        (images / "train0.png").symlink_to(target)
        return ["check", *place.config(f"dataset.image_root={images}")]

    return make


def _folder(place: Place) -> list[str]:
    images = _world_with(place)
    (images / "train0.png").unlink()
    (images / "train0.png").mkdir()
    return ["check", *place.config(f"dataset.image_root={images}")]


def _twice(place: Place) -> list[str]:
    images = _world_with(place)
    for name in ("a", "b"):
        (images / name).mkdir()
        shutil.copy(images / "train0.png", images / name / "train0.png")
    (images / "train0.png").unlink()
    return ["check", *place.config(f"dataset.image_root={images}")]


def ask(picture: str, question: str) -> Make:
    """`artkv ask`; `{world}` stands for the world's path."""
    return lambda place: [
        "ask", "--checkpoint", str(place.trained), picture.replace("{world}", str(place.world)), question
    ]  # fmt: skip


_AT = "/images/train0.png: "
_ONE = "{world}/images/train0.png"

PICTURES = Area(
    "Pictures",
    [
        BadInput("an empty file", picture(b""), ("train.csv:2: picture ", _AT + "an empty file (0 bytes); replace")),
        BadInput(
            "a web page",
            picture(b"<html>404</html>"),
            (_AT + "is a web page, and no picture of a known format (JPEG,", "replace"),
        ),
        BadInput(
            "half a PNG", picture(_saved("PNG")[:60]), (_AT + "damaged (", "replace the file with an undamaged copy")
        ),
        BadInput(
            "a PNG whose bytes are flipped",
            picture(_saved("PNG")[:45] + b"xxxx" + _saved("PNG")[49:]),
            (_AT + "damaged (",),
        ),
        BadInput("half a JPEG", picture(_saved("JPEG")[:400]), (_AT + "damaged (", "replace the file with")),
        *(
            BadInput(
                f"{what} for a picture",
                picture(content),
                (_AT + told, " of a known format (", "convert it to one, or replace the file with an undamaged"),
            )
            for what, content, told in [
                ("an SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
                ("a PDF", b"%PDF-1.7\n" + bytes(200), "is a PDF, and no picture"),
                ("a HEIC", b"\0\0\0\x18ftypheic" + bytes(200), "not a picture"),
                ("a drawing of Photoshop", b"8BPS\0\1" + bytes(200), "not a picture"),
                (
                    "an archive",
                    b"PK\3\4" + bytes(200),
                    "is a zip archive, as spreadsheets and PyTorch's files are, and",
                ),
            ]
        ),
        BadInput("half a TIFF", picture(_saved("TIFF")[:2000]), (_AT, "replace the file with an undamaged copy")),
        BadInput("half a WEBP", picture(_saved("WEBP")[:30]), (_AT, "replace the file with an undamaged copy")),
        BadInput(
            "PostScript, which would start a program",
            picture(_saved("EPS")),
            (_AT + "not a picture of a known format",),
        ),
        BadInput(
            "SVG",
            picture(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
            (_AT + "not a picture",),
        ),
        BadInput("an icon", picture(_saved("ICO")), (_AT + "not a picture of a known format",)),
        BadInput(
            "100 bytes that say to be 50,000 x 50,000 pixels",
            picture(_png(50_000, 50_000)),
            (_AT + "more than 300,000,000 pixels; scale it down, or raise dataset.max_pixels",),
        ),
        BadInput(
            "a PNG of 2^62 pixels",
            picture(_png(2**31 - 1, 2**31 - 1)),
            (_AT + "more than 300,000,000 pixels; scale it down",),
        ),
        BadInput("a PNG without a pixel", picture(_png(0, 40)), (_AT, "replace the file with an undamaged copy")),
        BadInput(
            "a GIF with a screen of 65,535 x 65,535",
            picture(_saved("GIF", "P").replace(struct.pack("<HH", 40, 30), b"\xff" * 4, 1)),
            (_AT + "more than 300,000,000 pixels",),
        ),
        BadInput(
            "a BMP of negative width",
            picture(_saved("BMP").replace(struct.pack("<ii", 40, 30), struct.pack("<ii", -40, 30))),
            (_AT + "more than 300,000,000 pixels",),
        ),
        BadInput(
            "a PNG whose comment unpacks to 80 MB",
            picture(_with_comment),
            (_AT + "damaged (Decompressed data too large",),
        ),
        BadInput(
            "32-bit grey",
            picture(_saved("TIFF", "I")),
            (_AT + "32-bit grey from 0 to 0, expected 16 bits; convert it",),
        ),
        BadInput(
            "pictures larger than dataset.max_pixels",
            lambda place: ["check", *place.config("dataset.max_pixels=1000")],
            ("more than 1,000 pixels; scale it down, or raise dataset.max_pixels",),
        ),
        BadInput(
            "a pipe", _pipe, (_AT + "cannot be read (is a pipe, where a regular file belongs); put a picture there",)
        ),
        BadInput(
            "a link to a device", _link("/dev/zero"), (_AT + "cannot be read (is a device, where a regular file",)
        ),
        BadInput(
            "a link to itself", _link("train0.png"), (_AT + "cannot be read (Too many levels of symbolic links)",)
        ),
        BadInput("a link to nothing", _link("nothing.png"), (_AT + "no such file; put it back",)),
        BadInput("a folder with a picture's name", _folder, ("picture 'train0.png' is missing", "add the picture")),
        BadInput(
            "one name in two folders",
            _twice,
            ("picture 'train0.png' is ambiguous: 'a/train0.png', 'b/train0.png'", "give one of these paths"),
        ),
        BadInput(
            "a question about no picture", ask("none.png", "What?"), ("IMAGE none.png: no such file; give the path of",)
        ),
        BadInput(
            "the question first",
            lambda place: ask("What?", str(place.world / "images/train0.png"))(place),
            ("IMAGE What?: no such file, while QUESTION", "is one; give IMAGE first"),
        ),
        BadInput(
            "standard input for the picture",
            ask("-", "What?"),
            ("IMAGE -: standard input is not read; save",),
        ),
        BadInput(
            "a picture's address",
            ask("https://example.com/a.jpg", "What?"),
            ("IMAGE https://example.com/a.jpg: is an address, and none is fetched; save",),
        ),
        BadInput(
            "a pattern that no shell has filled in",
            ask("{world}/images/*.jpeg", "What?"),
            ("images/*.jpeg: no such file, and a pattern is not looked for; give the path of one",),
        ),
        BadInput(
            "a folder of pictures for one",
            ask("{world}/images", "What?"),
            ("images: is a folder; give the path",),
        ),
        BadInput(
            "a drawing in place of a picture of one's own",
            lambda place: [*ask(_ONE, "What?")(place), "--attention", str(place.copy("images/train0.png"))],
            ("train0.png: is there already, and no drawing of artkv ask; give another name",),
        ),
        BadInput(
            "a question about a folder",
            ask("{world}", "What?"),
            ("IMAGE {world}: is a folder; give the path of one picture in it",),
        ),
        BadInput(
            "a question about a text",
            ask("{world}/train.csv", "What?"),
            ("train.csv: not a picture of a known format",),
        ),
        BadInput(
            "a question about a device", ask("/dev/zero", "What?"), ("picture /dev/zero: cannot be read (is a device",)
        ),
        BadInput(
            "a question of 5,000 words",
            ask(_ONE, "word " * 5000),
            (
                "the question 'word word",
                "(25,000 characters) has ",
                "tokens with dataset.prompt around it, and the language model has room for 121; shorten",
            ),
        ),
        BadInput("an empty question", ask(_ONE, ""), ("argument QUESTION: '' is empty",), exit_code=2),
        BadInput("a question of spaces", ask(_ONE, " \t\n"), (r"argument QUESTION: ' \t\n' is empty",), exit_code=2),
        BadInput(
            "a question with escape codes",
            ask(_ONE, "What\x1b[2J?"),
            (r"the question 'What\x1b[2J?' holds a control character", "leave that out"),
        ),
        BadInput(
            "a question that is no UTF-8",
            ask(_ONE, "What\udcff?"),
            (r"the question 'What\udcff?' holds bytes that are no UTF-8",),
        ),
        BadInput(
            "verifying a cache that is not there",
            lambda place: ["cache", "--verify", *place.config("frozen.feature_cache=nowhere")],
            ("frozen.feature_cache = {folder}/nowhere: holds no feature cache, and nothing to verify",),
        ),
        BadInput(
            "verifying a folder of something else",
            lambda place: ["cache", "--verify", *place.config(f"frozen.feature_cache={place.world}")],
            ("holds something else; give a new or an empty folder",),
        ),
        BadInput(
            "a cache whose description is garbled",
            lambda place: [
                "cache",
                "--verify",
                *place.config(f"frozen.feature_cache={place.write('features/cache.json', '[1').parent}"),
            ],
            ("features/cache.json: not a feature cache's description",),
        ),
    ],
)
