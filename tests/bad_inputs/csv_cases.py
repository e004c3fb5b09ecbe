"""CSV files that are no table of questions."""

import os

from tests.bad_inputs.cases import Area, BadInput, Make, Place

HEADER = "image,question,answer\n"
ROW = "train0.png,What?,oil\n"


def table(content: str | bytes, split: str = "train") -> Make:
    """`artkv check` with this CSV file."""
    return lambda place: ["check", *place.config(f"dataset.{split}={place.write('my.csv', content)}")]


def table_with(content: str | bytes, setting: str) -> Make:
    """`artkv check` with this CSV file and a setting of `dataset`."""
    return lambda place: [
        "check",
        *place.config(f"dataset.train={place.write('my.csv', content)}", f"dataset.{setting}"),
    ]


def row(text: str | bytes) -> Make:
    """The same, with a right header and a right row before."""
    return table((HEADER + ROW).encode() + (text.encode() if isinstance(text, str) else text))


def _pipe(place: Place) -> list[str]:
    os.mkfifo(place.folder / "my.csv")
    return ["check", *place.config(f"dataset.train={place.folder / 'my.csv'}")]


def _named(name: str) -> Make:
    return lambda place: ["check", *place.config(f"dataset.train={name}")]


_AT = "{folder}/my.csv:"

CSV = Area(
    "CSV files",
    [
        BadInput(
            "no such file", _named("none.csv"), ("none.csv: cannot be read (No such file", "give an existing CSV")
        ),
        BadInput("a folder", _named("/tmp"), ("/tmp: cannot be read (is a folder", "give an existing CSV file")),
        BadInput(
            "a pipe that nobody writes to", _pipe, ("{folder}/my.csv: cannot be read (is a pipe", "give an existing")
        ),
        BadInput("a device without an end", _named("/dev/zero"), ("/dev/zero: cannot be read (is a device", "give an")),
        BadInput("an empty file", table(""), (_AT + "1: the file is empty; it needs a header image,question,answer",)),
        BadInput("a mark of UTF-8 and nothing else", table(b"\xef\xbb\xbf\n"), (_AT + "1: the file is empty",)),
        *(
            BadInput(
                f"a spreadsheet's {what}",
                row(f"train1.png,What?,{cell}\n"),
                (f"{_AT}3: answer ", says, "correct the cell"),
            )
            for what, cell, says in [
                ("error for an answer", "#REF!", "'#REF!' is a spreadsheet's error"),
                ("formula for an answer", '"=VLOOKUP(A2;B:C;2)"', "is a spreadsheet's formula"),
            ]
        ),
        BadInput("a header alone", table(HEADER), (_AT + "1: no rows below the header; add at least one question",)),
        BadInput(
            "other names, and semicolons",
            table("img;Question;reply\na;b;c\n"),
            (
                _AT + "1: missing columns 'image', 'question', 'answer'; the header has 'img', 'Question', 'reply'",
                "set dataset.columns to the names that it has",
            ),
        ),
        BadInput(
            "a column named in the config that the header lacks",
            table_with("image,question,answer\na,b,c\n", "columns.answer=reply"),
            (_AT + "1: missing column 'reply'; the header has 'image'", "set dataset.columns"),
        ),
        BadInput(
            "an optional column named in the config that the header lacks",
            table_with("image,question,answer\na,b,c\n", "columns.question_type=kind"),
            (_AT + "1: missing column 'kind'", "the header has 'image'"),
        ),
        BadInput(
            "one column for two things",
            table_with("image,question,answer\na,b,c\n", "columns.answer=question"),
            ("answer and question are both 'question'; give each a column of its own",),
        ),
        BadInput(
            "a column without a name",
            table_with("image,question,answer\na,b,c\n", "columns={answer: ''}"),
            ("dataset.columns.answer = ''", "give the header of the column with the answer"),
        ),
        BadInput(
            "a thing that no column is for",
            table_with("image,question,answer\na,b,c\n", "columns.picture=image"),
            ("dataset.columns.picture = 'image': unknown key",),
        ),
        BadInput(
            "another delimiter than the one that is set",
            table_with("image;question;answer\na;b;c\n", "delimiter=tab"),
            (_AT + "1: dataset.delimiter = tab, and the header's names stand between semicolons; set it to semicolon",),
        ),
        BadInput(
            "the root of the file system for the pictures",
            lambda place: ["check", *place.config("dataset.image_root=/")],
            ("dataset.image_root /: is the root of the file system; give the folder that holds the pictures",),
        ),
        BadInput(
            "a file system of the kernel for the pictures",
            lambda place: ["check", *place.config("dataset.image_root=/proc/self")],
            ("dataset.image_root /proc/", "is a file system that the kernel makes up; give the folder"),
        ),
        BadInput(
            "a character for the delimiter's name",
            table_with(HEADER, "delimiter=;"),
            ("dataset.delimiter = ';'", "give auto (", "comma, semicolon, tab or pipe"),
        ),
        BadInput(
            "an encoding that is none of text",
            table_with(HEADER, "encoding=rot13"),
            ("dataset.encoding = 'rot13'", "give one of utf-8, utf-16, latin-1"),
        ),
        BadInput(
            "Latin-1 set for a file in UTF-8",
            table_with(HEADER + "train0.png,caf\xe9,oil\n", "encoding=latin-1"),
            (_AT + "1: the file is UTF-8, and dataset.encoding = 'latin-1'; leave that out",),
        ),
        BadInput(
            "UTF-16 set for a file in UTF-8",
            table_with(HEADER + ROW, "encoding=utf-16"),
            (_AT + "1: the file is not UTF-16; set dataset.encoding to the one that it is",),
        ),
        BadInput(
            "UTF-16 that is cut within a character",
            table_with((HEADER + ROW).encode("utf-16")[:-1], "encoding=utf-16"),
            ("of the file is not utf-16 (truncated data); set dataset.encoding to the one",),
        ),
        BadInput(
            "an Asian encoding set for Latin-1",
            table_with((HEADER + ROW + "train0.png,caf\xe9,oil\n").encode("latin-1"), "encoding=euc-kr"),
            (_AT + "3: what stands at byte ", "of the file is not euc-kr (", "; set dataset.encoding to the one"),
        ),
        BadInput("no paintings at all as the limit", table_with(HEADER, "limit=0"), ("dataset.limit = 0", "1 or more")),
        BadInput("no column of answers", table("image,question\na,b\n"), (_AT + "1: missing column 'answer'",)),
        BadInput(
            "a column twice", table("image,answer,question,answer\na,b,c,d\n"), ("column 'answer' appears 2 times",)
        ),
        BadInput(
            "a header in capitals", table("Image,Question,Answer\na,b,c\n"), ("the header has 'Image', 'Question'",)
        ),
        BadInput("escape codes in the header", table("im\x1b[2Jage,question,answer\na,b,c\n"), (r"'im\x1b[2Jage'",)),
        BadInput(
            "two thousand columns", table(",".join(f"c{n}" for n in range(2000)) + "\n"), ("and 1,980 more; it needs",)
        ),
        BadInput(
            "UTF-16",
            table((HEADER + ROW).encode("utf-16")),
            (_AT + "1: the file is UTF-16; save it as UTF-8, or set dataset.encoding: utf-16",),
        ),
        BadInput("UTF-16 without a mark", table((HEADER + ROW).encode("utf-16-le")), ("is UTF-16; save it as UTF-8",)),
        BadInput(
            "Latin-1",
            table((HEADER + "train0.png,caf\xe9,oil\n").encode("latin-1")),
            (_AT + "2: byte 0xE9 at column 15 is not UTF-8; save", "iconv -f latin1"),
        ),
        BadInput(
            "Latin-1 on 3,000 lines",
            table(HEADER.encode() + b"train0.png,caf\xe9,oil\n" * 3000),
            (
                _AT + "2: byte 0xE9 at column 15 is not UTF-8, and 2,999 more lines are not; save",
                "or set dataset.encoding: latin-1",
            ),
        ),
        BadInput(
            "a NUL byte", row("train0.png,a\0b,oil\n"), (_AT + "3: the line holds a NUL byte; save the file as plain",)
        ),
        BadInput(
            "a picture's bytes",
            table(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20),
            ("my.csv:1: the file is a picture; save the table as CSV",),
        ),
        BadInput("a spreadsheet's file", table(b"PK\x03\x04" + bytes(200)), ("is a zip archive, as spreadsheets and",)),
        BadInput("UTF-32", table((HEADER + ROW).encode("utf-32")), ("the file is UTF-32; save the table as CSV",)),
        BadInput(
            "a quote that is never closed",
            row('train0.png,"What?,oil\n'),
            (_AT + "3: a double quote opened in this row",),
        ),
        BadInput(
            "text after a closing quote",
            row('train0.png,"What" now,oil\n'),
            (_AT + "3: text follows a closing double",),
        ),
        BadInput(
            "1,500 lines whose quotes are never closed",
            table(HEADER + 'a""","\n' * 1500),
            (_AT + "2: a double quote opened in this row is not closed within 1,000 lines", "all 1,001 are listed in"),
        ),
        BadInput(
            "a field of 200,000 characters",
            row(f"train0.png,{'x' * 200_000},oil\n"),
            (_AT + "3: a field of this row has 200,000 characters, of 100,000 at most; shorten it",),
        ),
        BadInput(
            "a line of two million characters",
            row("x" * 2_000_000),
            (_AT + "3: the line has 2,000,000 characters, of",),
        ),
        BadInput(
            "a comma in a text without quotes",
            row("train0.png,Who, when?,oil\n"),
            ("4 fields, the header 3; put double",),
        ),
        BadInput(
            "a row that is too short",
            row("train0.png,What?\n"),
            (_AT + "3: the row has 2 fields, the header 3", "; add the fields that are missing, or put double"),
        ),
        *(
            BadInput(
                f"a row of {name}s below a header of semicolons",
                table(f"image;question;answer\ntrain0.png{between}What?{between}oil\n"),
                (f"my.csv:2: the row has 1 fields, the header 3; its fields stand between {name}s, the header's",),
            )
            for name, between in [("comma", ","), ("tab", "\t"), ("pipe", "|")]
        ),
        *(
            BadInput(
                f"Excel's line {line}", table(f"{line}\n{HEADER}{ROW}"), (f"my.csv:1: the line {line} is for Excel",)
            )
            for line in ("sep=;", "sep=,")
        ),
        *(
            BadInput(
                f"a {name} with {shown}",
                row(text),
                (f"my.csv:3: {name} {quoted} holds the control character '{shown}'; write the text without it{more}",),
            )
            for name, text, quoted, shown, more in [
                ("question", "train0.png,Wh\x1b[2Jat?,oil\n", r"'Wh\x1b[2Jat?'", r"\x1b", ""),
                ("answer", "train0.png,What?,o\x92il\n", r"'o\x92il'", r"\x92", ", or set dataset.encoding to cp1252"),
            ]
        ),
        BadInput(
            "a config without any settings",
            lambda place: [
                "check",
                "--config",
                str(place.write("my.yaml", "# model:\n")),
                "--set",
                f"model.blip2={place.world / 'blip2'}",
            ],
            (
                "dataset.train is not set; give the CSV file to train on",
                "dataset.image_root is not set; give the folder",
            ),
        ),
        BadInput("no answer", row("train0.png,What?,\n"), (_AT + "3: empty answer; fill it in or remove the row",)),
        BadInput(
            "a question of spaces", row("train0.png,   ,oil\n"), (_AT + "3: empty question; fill it in or remove",)
        ),
        BadInput("no picture", row(",What?,oil\n"), (_AT + "3: empty image; fill it in or remove the row",)),
        BadInput(
            "an answer of two lines", row('train0.png,What?,"oil\non"\n'), (r"answer 'oil\non' holds a line break",)
        ),
        BadInput(
            "a question_id twice",
            table("image,question,answer,question_id\ntrain0.png,a,b,7\ntrain0.png,a,b,7\n"),
            (_AT + "3: question_id '7' was used in line 2; give each",),
        ),
        BadInput(
            "an answer of 5,000 characters in two lines",
            row(f'train0.png,What?,"{"x" * 5000}\ny"\n'),
            ("... (5,002 characters) holds a line",),
        ),
        BadInput(
            "a question too long for the model",
            row(f"train0.png,{'word ' * 200},oil\n"),
            (_AT + "3: the row needs ", "the language model has 128; shorten"),
        ),
        BadInput(
            "a picture that is nowhere",
            row("none.png,What?,oil\n"),
            (_AT + "3: picture 'none.png' is missing", "add the picture"),
        ),
        BadInput(
            "a picture in other case",
            row("TRAIN0.PNG,What?,oil\n"),
            ("picture 'TRAIN0.PNG' is missing", "did you mean 'train0.png'?"),
        ),
        BadInput(
            "a picture's path as Windows writes it",
            row("sub\\train1.png,What?,oil\n"),
            (r"picture 'sub\\train1.png' is missing", "did you mean 'sub/train1.png'? folders stand before a '/', and"),
        ),
        BadInput(
            "a picture's name with another ending",
            row("train0.jpg,What?,oil\n"),
            ("picture 'train0.jpg' is missing", "did you mean 'train0.png'? names must match in case, accents, folder"),
        ),
        BadInput(
            "a picture's name without its ending", row("Train0,What?,oil\n"), ("did you mean 'train0.png'? names must",)
        ),
        BadInput(
            "an address for a picture",
            row("https://example.org/train0.png,What?,oil\n"),
            (_AT + "3: picture 'https://example.org/train0.png' is missing", "it is an address, and none is fetched"),
        ),
        BadInput(
            "a table behind another, with its header",
            table((HEADER + ROW) * 2),
            (_AT + "3: the row is the header once more, as where one table was put behind another; remove it",),
        ),
        *(
            BadInput(
                f"the {what} of Windows in a table that is to be UTF-8",
                row(f"train0.png,{text},oil\n".encode("cp1252")),
                ("is not UTF-8; save the file as UTF-8 (if it is Windows-1252: iconv -f cp1252", "encoding: cp1252"),
            )
            for what, text in [("apostrophe", "What\u2019s it?"), ("sign of the euro", "10 \u20ac?")]
        ),
        BadInput(
            "an Asian encoding in a table that is to be UTF-8",
            row("train0.png,\u30ad\u30e3\u30f3\u30d0\u30b9?,\u306f\n".encode("shift_jis")),
            ("is not UTF-8; save the file as UTF-8, or set dataset.encoding to the one that it is in",),
        ),
        BadInput(
            "an absolute path of a picture",
            row("/etc/passwd,What?,oil\n"),
            ("picture '/etc/passwd' is missing", "give its path below dataset.image_root"),
        ),
        BadInput(
            "a path that leads out of image_root",
            row("../../etc/passwd,What?,oil\n"),
            ("'../../etc/passwd' is missing", "give its path below"),
        ),
        BadInput(
            "a picture's name of 5,000 characters",
            row(f"{'x' * 5000}.png,What?,oil\n"),
            ("... (5,004 characters) is missing",),
        ),
        BadInput(
            "escape codes in a picture's name",
            row("a\x1b]0;title\x07.png,What?,oil\n"),
            (r"picture 'a\x1b]0;title\x07.png' is missing",),
        ),
        BadInput(
            "a picture that is missing in 2,000 rows",
            table(HEADER + "".join(f"none{n}.png,What?,oil\n" for n in range(2000))),
            ("and 1,950 more: 1,950 x picture: no such file under ", "all 2,000 are listed in"),
        ),
        BadInput(
            "a validation file that is no CSV", table("{}", "val"), (_AT + "1: missing columns", "the header has '{}'")
        ),
        BadInput(
            "no such image_root",
            lambda place: ["check", *place.config("dataset.image_root=none")],
            ("dataset.image_root {folder}/none: no such folder; give",),
        ),
        BadInput(
            "a file for image_root",
            lambda place: ["check", *place.config(f"dataset.image_root={place.write('a', 'b')}")],
            ("{folder}/a: is a file; give the folder",),
        ),
        BadInput(
            "an image_root whose name is too long",
            lambda place: ["check", *place.config(f"dataset.image_root={'x' * 300}")],
            ("cannot be listed (File name too long)",),
        ),
        BadInput(
            "a file cut inside its last character",
            table((HEADER + "train0.png,What?,D\u00fcrer \u8336").encode()[:-1]),
            (_AT + "2: the file ends inside a character: 0xE8 0x8C at column 24 lacks", "cut off, fetch it whole"),
        ),
        BadInput(
            "halves of UTF-16 pairs, encoded",
            table(HEADER.encode() + b"train0.png,What\xed\xa0\xbd\xed\xb8\x80?,oil\n"),
            (_AT + "2: the bytes 0xED 0xA0 0xBD at column 16 are half of a UTF-16 pair", "save the file as UTF-8 anew"),
        ),
        BadInput(
            "UTF-8 with a byte that was damaged",
            table((HEADER + "train0.png,D\u00fcrer?,oil\ntrain2.png,").encode() + b"\xff?,oil\n"),
            (_AT + "3: byte 0xFF at column 12 is not UTF-8, as the rest of the file is: it is damaged there",),
        ),
        BadInput(
            "an answer of nothing but a character without width",
            row("train0.png,Which?,\u200b\n"),
            (_AT + r"3: answer '\u200b' holds nothing that can be seen, but U+200B (ZERO WIDTH SPACE); fill it in",),
        ),
        BadInput(
            "a question of nothing but a filler",
            row("train0.png,\u3164,oil\n"),
            (_AT + "3: question ", "holds nothing that can be seen, but U+3164 (HANGUL FILLER); fill it in or remove"),
        ),
        BadInput(
            "a column's name with a character without width",
            table("image,question,ans\u200bwer\n" + ROW),
            (_AT + r"1: the column 'ans\u200bwer' holds U+200B (ZERO WIDTH SPACE), which cannot be seen; type its",),
        ),
    ],
)
