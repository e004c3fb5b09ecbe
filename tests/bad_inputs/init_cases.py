"""Folders that `artkv init` can make no config of."""

import json
import os
import shutil

from tests.bad_inputs.cases import Area, BadInput, Make, Place

HEADER = "image,question,answer\n"
ROW = "train0.png,What?,oil\n"
ROWS = HEADER + "".join(f"train{number}.png,What?,oil\n" for number in range(6))


def folder(files: dict[str, str | bytes], *options: str, pictures: bool = True) -> Make:
    """`artkv init` of a folder with these files, and with pictures."""

    def make(place: Place) -> list[str]:
        for name, content in files.items():
            place.write(f"mine/{name}", content)
        (place.folder / "mine").mkdir(exist_ok=True)
        if pictures:
            shutil.copytree(place.world / "images", place.folder / "mine" / "images")
        return ["init", "mine", *options]

    return make


def _there(name: str) -> Make:
    def make(place: Place) -> list[str]:
        place.write(name, "a person's")
        return folder({"all.csv": ROWS})(place)

    return make


def _linked(place: Place) -> list[str]:
    arguments = folder({"all.csv": ROWS})(place)
    (place.folder / "my.yaml").symlink_to(place.folder / "nowhere")
    return arguments


def _pipe(place: Place) -> list[str]:
    arguments = folder({})(place)
    os.mkfifo(place.folder / "mine" / "all.csv")
    return arguments


def _two_pictures(place: Place) -> list[str]:
    arguments = folder({"all.csv": HEADER + "train1.png,What?,oil\n"})(place)
    (place.folder / "mine/images/other").mkdir()
    shutil.copy(place.folder / "mine/images/sub/train1.png", place.folder / "mine/images/other/train1.png")
    return arguments


def _loop(place: Place) -> list[str]:
    (place.folder / "mine").symlink_to(place.folder / "mine")
    return ["init", "mine"]


def _items(*items: object) -> str:
    return json.dumps(items)


RIGHT = {"image": "train0.png", "question": "What?", "answer": "oil", "need_external_knowledge": False}

INIT = Area(
    "A folder for `artkv init`",
    [
        BadInput(
            "a folder that is not there", lambda place: ["init", "none"], ("FOLDER none: cannot be listed (No such",)
        ),
        BadInput(
            "a file for the folder",
            lambda place: ["init", str(place.write("all.csv", ROWS))],
            ("FOLDER {folder}/all.csv: cannot be listed (Not a directory); give a folder",),
        ),
        BadInput("a folder that is a link to itself", _loop, ("FOLDER mine: cannot be listed (Too many levels",)),
        BadInput(
            "an empty folder", folder({}, pictures=False), ("mine: no pictures below it; give the folder", "--images")
        ),
        BadInput(
            "questions without pictures",
            folder({"all.csv": ROWS}, pictures=False),
            ("mine: no pictures below it; give the folder that holds them with --images",),
        ),
        BadInput(
            "a folder of pictures that is not there",
            folder({"all.csv": ROWS}, "--images", "none"),
            ("--images none: cannot be listed (No such file",),
        ),
        BadInput("pictures without questions", folder({"notes": ROWS}), ("mine: no CSV or JSON file below it; give",)),
        BadInput(
            "captions for questions",
            folder({"semart_train.csv": "IMAGE_FILE\tDESCRIPTION\tAUTHOR\ntrain0.png\tA saint.\tA\n"}),
            ("semart_train.csv: captions, no questions", "mine: no table of questions there; put them into CSV with"),
        ),
        BadInput(
            "headers that say nothing",
            folder({"all.csv": "a1,b2,c3\ntrain0.png,What?,oil\n"}),
            ("all.csv: no column of question or answer among 'a1', 'b2', 'c3'", "--question-column, --answer-column"),
        ),
        BadInput(
            "escape codes in a header",
            folder({"all.csv": "im\x1b[2Jage,question,answer\ntrain,What?,oil\n"}),
            (r"no column of image among 'im\x1b[2Jage'",),
        ),
        BadInput(
            "a column that no file has",
            folder({"all.csv": ROWS}, "--image-column", "picture"),
            ("--image-column picture: no table has such a column; give one of 'image', 'question', 'answer'",),
        ),
        BadInput(
            "one column for two things",
            folder({"all.csv": ROWS}, "--question-column", "answer", "--answer-column", "answer"),
            ("--question-column and --answer-column are both 'answer'; give each a column of its own",),
        ),
        BadInput(
            "a spreadsheet", folder({"all.csv": b"PK\x03\x04" + bytes(99)}), ("all.csv: the file is a zip archive",)
        ),
        BadInput(
            "a pipe among the files", _pipe, ("all.csv: cannot be read (is a pipe, where a regular file belongs)",)
        ),
        BadInput("an empty table", folder({"all.csv": ""}), ("all.csv: is empty", "no table of questions there")),
        BadInput(
            "a header alone", folder({"all.csv": HEADER}), ("all.csv:1: no rows below the header; add at least one",)
        ),
        BadInput(
            "a picture that is missing",
            folder({"all.csv": ROWS + "none.png,What?,oil\n"}),
            ("all.csv:8: picture 'none.png' is missing", "1 problem with its questions", "--leave-out-wrong"),
        ),
        BadInput(
            "a picture's name that lies in two folders",
            _two_pictures,
            ("all.csv:2: picture 'train1.png' is ambiguous: ", "'sub/train1.png'", "give one of these paths"),
        ),
        BadInput(
            "a row that is too short", folder({"all.csv": ROWS + "train0.png\n"}), ("all.csv:8: the row has 1 fields",)
        ),
        BadInput(
            "a quote that is never closed",
            folder({"all.csv": ROWS + 'train0.png,"What?,oil\n'}),
            ("all.csv:8: a double quote opened in this row",),
        ),
        BadInput(
            "no row that is right",
            folder({"all.csv": HEADER + "none.png,What?,oil\n"}, "--leave-out-wrong"),
            (
                "all.csv:2: picture 'none.png' is missing",
                "correct the name, or correct FOLDER or --images",
                "all.csv: no row of it is right, and --leave-out-wrong would leave none; correct them",
            ),
        ),
        BadInput(
            "two paintings for three splits",
            folder({"all.csv": HEADER + ROW + "train2.png,What?,oil\n"}),
            ("the questions are on 2 paintings, and a painting belongs to one split alone; three are needed",),
        ),
        BadInput(
            "two files to train on",
            folder({"train.csv": ROWS, "AQUA/train.json": _items(RIGHT)}),
            ("mine/train.csv and mine/AQUA/train.json: both are train by their names; give the folder of one",),
        ),
        BadInput(
            "two files that no name tells",
            folder({"a.csv": ROWS, "b.csv": ROWS}),
            ("2 tables of questions (a.csv, b.csv), and none is to train on by its name; name them",),
        ),
        BadInput(
            "AQUA's items with one that lacks its answer",
            folder({"train.json": _items(RIGHT, {"image": "train0.png", "question": "What?"})}),
            ("train.json:2: 'answer' of the item is missing; give it a text",),
        ),
        BadInput(
            "an item whose answer is a list",
            folder({"train.json": _items(RIGHT, {**RIGHT, "answer": ["oil"]})}),
            ("train.json:2: 'answer' of the item is \"['oil']\"; give it a text",),
        ),
        BadInput(
            "JSON that is cut",
            folder({"train.json": _items(RIGHT)[:-3]}),
            ("train.json: is no JSON (", "no table of questions there; put them into CSV with a header"),
        ),
        BadInput(
            "JSON of another kind",
            folder({"train.json": '{"a": 1}'}),
            ("train.json: holds an object where a list of objects belongs", 'a list of one object for each, [{"image"'),
        ),
        BadInput(
            "a list of texts",
            folder({"train.json": _items(RIGHT, "What?")}),
            ("train.json: item 2 of its list is a text where an object belongs",),
        ),
        BadInput(
            "questions in a spreadsheet",
            folder({"questions.xlsx": "PK", "more.jsonl": "{}"}),
            ("no CSV or JSON file below it (its other files end in .jsonl, .xlsx, which are not read); give",),
        ),
        BadInput(
            "pictures of another format",
            folder({"all.csv": ROWS, "one.heic": "x"}, pictures=False),
            ("no pictures below it (its other files end in .heic, which are not read); give",),
        ),
        BadInput(
            "an empty table of a split beside a right one",
            folder({"train.csv": ROWS, "val.csv": ""}),
            ("mine/val.csv: is empty, and by its name it is the table of val", "correct it, or move it elsewhere"),
        ),
        BadInput(
            "a mistyped header in the table of a split",
            folder({"train.csv": ROWS, "val.csv": ROWS.replace("question", "qestion")}),
            ("mine/val.csv: no column of question among", "is the table of val, which no other is; correct it"),
        ),
        BadInput(
            "100,000 lists in one another",
            folder({"train.json": "[" * 100_000}),
            ("train.json: is no JSON", "too deeply"),
        ),
        BadInput(
            "an encoding that is none",
            folder({"all.csv": ROWS}, "--encoding", "klingon"),
            ("--encoding klingon: is none that a config can name; give one of utf-8, utf-16, latin-1",),
        ),
        BadInput(
            "UTF-16 asked for, and UTF-8 there",
            folder({"all.csv": ROWS}, "--encoding", "utf-16"),
            (
                "mine/all.csv: is not in the encoding that --encoding gives: utf-16",
                "without --encoding utf-16 mine/all.csv is one; leave that out, or correct it",
            ),
        ),
        *(
            BadInput(what, folder({"all.csv": ROWS}, *words), (f"mine: no table of questions there; without {told}",))
            for what, words, told in [
                ("tabs asked for, and commas there", ("--delimiter", "tab"), "--delimiter tab mine/all.csv is one"),
                (
                    "the column of the answers for that of the questions",
                    ("--question-column", "answer"),
                    "--question-column answer mine/all.csv is one; leave that out, or correct it",
                ),
                (
                    "delimiter and encoding that are both others",
                    ("--delimiter", "pipe", "--encoding", "utf-16"),
                    "--delimiter pipe and --encoding utf-16 mine/all.csv is one",
                ),
            ]
        ),
        BadInput(
            "a file for BLIP-2's folder",
            folder({"all.csv": ROWS}, "--blip2", "mine/all.csv"),
            ("--blip2 mine/all.csv: is no folder; give a folder of BLIP-2, or leave it out for the hub's",),
        ),
        BadInput(
            "an empty folder for BLIP-2's",
            folder({"all.csv": ROWS}, "--blip2", "mine/images/sub"),
            ("--blip2 mine/images/sub: mine/images/sub has no config.json; give a folder of BLIP-2",),
        ),
        BadInput(
            "an address of the hub for BLIP-2",
            folder({"all.csv": ROWS}, "--blip2", "https://huggingface.co/user/blip2"),
            ("--blip2 https://huggingface.co/user/blip2: no such folder, and no hub id; did you mean 'user/blip2'? ",),
        ),
        BadInput(
            "the root of the file system",
            lambda place: ["init", "/"],
            ("FOLDER /: is the root of the file system; give the folder of the pictures and questions",),
        ),
        BadInput(
            "another delimiter asked for than there is",
            folder({"all.csv": ROWS}, "--delimiter", "tab"),
            ("all.csv: no column of image or question or answer among 'image,question,answer'",),
        ),
        BadInput(
            "a config that is there already",
            _there("my.yaml"),
            ("--output my.yaml: my.yaml is there already; give another",),
        ),
        BadInput("a link to nowhere for the config", _linked, ("--output my.yaml: my.yaml is there already",)),
        BadInput(
            "a folder for the new tables that is there already",
            _there("my_data/train.csv"),
            ("--output my.yaml: my_data is there already; give another name, or remove it",),
        ),
        BadInput(
            "a CSV file for the config",
            folder({"all.csv": ROWS}, "--output", "mine/all.csv"),
            ("--output mine/all.csv: is to be a config; give it a name that ends in .yaml",),
        ),
        BadInput(
            "a config in a folder that cannot be",
            folder({"all.csv": ROWS}, "--output", "/proc/none/my.yaml"),
            ("--output /proc/none/my.yaml", "cannot be written", "give another place"),
        ),
        BadInput(
            "an art encoder that is not there",
            folder({"all.csv": ROWS}, "--art-encoder", "none.pth"),
            ("--art-encoder none.pth: no such file; give a .pth or .safetensors",),
        ),
        *(
            BadInput(
                f"{what} for the art encoder",
                folder({"all.csv": ROWS, "pdf": b"%PDF-1.7"}, "--art-encoder", given),
                (f"--art-encoder {given}: {told}; give a .pth or .safetensors, or leave it out",),
            )
            for what, given, told in [
                ("a folder", "mine", "is a folder"),
                ("a table", "mine/all.csv", "is no file of weights"),
                ("a PDF", "mine/pdf", "is a PDF"),
            ]
        ),
        BadInput("no name for a column", folder({"all.csv": ROWS}, "--image-column", ""), ("is empty",), exit_code=2),
        BadInput("a seed that is none", folder({"all.csv": ROWS}, "--seed", "-1"), ("--seed",), exit_code=2),
    ],
)
