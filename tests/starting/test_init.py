"""A stranger's folder becomes a config that `artkv check` passes; nothing of the stranger's is touched."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import artkv.cli as cli
from artkv.config import Config, load_config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.shared_pictures import shared_pictures
from artkv.datasets.table import QuestionTable, read_table
from artkv.datasets.table_form import TableForm
from artkv.errors import UserError
from artkv.starting.arguments import InitOptions
from artkv.starting.init import Report, init

TINY = ["--set", "efficientnet.architecture=test_efficientnet", "--set", "efficientnet.image_size=32"]


@pytest.fixture
def folder(tiny_world: Path, tmp_path: Path) -> Path:
    """A folder with the tiny world's pictures alone, in sub-folders."""
    shutil.copytree(tiny_world / "images", tmp_path / "mine" / "pictures")
    return tmp_path / "mine"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_of(world: Path, *splits: str) -> list[dict[str, str]]:
    rows = []
    for split in splits or ("train", "val"):
        with (world / f"{split}.csv").open(newline="") as file:
            rows += list(csv.DictReader(file))
    return rows


def write_csv(
    path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",", encoding: str = "utf-8"
) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


def state(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def started(folder: Path, output: Path, **more: object) -> tuple[Config, Report]:
    """The config that init writes, and what it tells; checks that the folder is as it was."""
    before = state(folder)
    report = init(InitOptions(folder, output, **more))  # type: ignore[arg-type]
    assert state(folder) == before
    return load_config(output), report


def tables(config: Config) -> dict[str, QuestionTable]:
    assert config.dataset.image_root is not None
    images, form = ImageIndex(config.dataset.image_root), TableForm.of(config.dataset)
    paths = {split: getattr(config.dataset, split) for split in ("train", "val", "test")}
    return {split: read_table(path, images, form) for split, path in paths.items() if path is not None}


def texts(found: dict[str, QuestionTable]) -> set[tuple[str, str, str, str]]:
    return {
        (table.painting_paths[painting].name, question, answer, kind)
        for table in found.values()
        for painting, question, answer, kind in zip(
            table.painting_of_row, table.questions, table.answers, table.question_types, strict=True
        )
    }


def test_one_table_with_other_names_is_split_by_painting_and_passes_check(
    tiny_world: Path, folder: Path, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(tiny_world)
    write_csv(
        folder / "fragen.csv",
        ["Nr", "file", "Question", "Answer", "category"],
        [[str(n), r["image"], r["question"] + " Käse?", r["answer"], r["question_type"]] for n, r in enumerate(rows)],
        delimiter=";",
        encoding="latin-1",
    )
    art = ["--art-encoder", str(tiny_world / "efficientnet.safetensors"), "--blip2", str(tiny_world / "blip2")]
    assert cli.main(["init", str(folder), *art]) == 0
    told = capsys.readouterr().out
    assert "found: fragen.csv, semicolon-separated, latin-1: image: file, question: Question, answer: Answer" in told
    assert "assumed: a single table, so its paintings were shared out by seed 1337, none into two splits" in told
    assert cli.main(["check", "--config", "my.yaml", *TINY]) == 0, capsys.readouterr().err
    assert "note: " not in capsys.readouterr().out.replace("note: model.revision", "")

    found = tables(load_config("my.yaml"))
    assert sorted(found) == ["test", "train", "val"]
    assert texts(found) == {(r["image"], r["question"] + " Käse?", r["answer"], r["question_type"]) for r in rows}
    assert sum(map(len, found.values())) == len(rows) == 41
    names = [set(table.painting_paths) for table in found.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == 17
    assert {len(table) for table in found.values()} != {0}
    comments = (tmp_path / "my.yaml").read_text(encoding="utf-8")
    assert "# - fragen.csv, semicolon-separated, latin-1" in comments
    assert "shared out by seed 1337" in comments


RECORDED = {"architecture": "test_efficientnet", "image_size": "32", "classes": "[]", "epoch": "1", "top1": "0.5"}


IMAGENETS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        (RECORDED, ("efficientnet", "test_efficientnet", 32, *IMAGENETS)),
        (
            RECORDED | {"architecture": "test_vit", "mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.5, 0.5]"},
            ("art_encoders", "test_vit", 32, (0.5, 0.5, 0.5), (0.25, 0.5, 0.5)),
        ),
        ({"format": "pt"}, ("efficientnet", "efficientnet_b2", 300, *IMAGENETS)),
    ],
)
def test_what_an_art_encoders_file_records_is_written(
    tiny_world: Path, folder: Path, tmp_path: Path, metadata: dict[str, str], wanted: tuple[object, ...]
) -> None:
    art_encoder = tmp_path / "efficientnet_b2.safetensors"
    save_file({"x": torch.zeros(1)}, art_encoder, metadata)
    write_csv(folder / "all.csv", ["image", "question", "answer"], [[f"train{n}.png", "Who?", "Me"] for n in range(4)])
    config, _ = started(folder, tmp_path / "my.yaml", art_encoder=art_encoder)
    encoder = config.used_encoders[0]
    assert encoder.checkpoint == art_encoder
    section = "efficientnet" if config.art_encoders is None else "art_encoders"
    assert (section, encoder.architecture, encoder.image_size, encoder.mean, encoder.std) == wanted


def test_copies_of_a_painting_come_into_one_split(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    rows = rows_of(tiny_world)
    for picture in list((folder / "pictures").rglob("*.png")):
        shutil.copy(picture, picture.with_name(f"copy_of_{picture.name}"))
    copies = [[name, r["question"], r["answer"]] for r in rows for name in (r["image"], f"copy_of_{r['image']}")]
    write_csv(folder / "all.csv", ["image", "question", "answer"], copies)
    for seed in range(4):
        found = tables(started(folder, tmp_path / f"my{seed}.yaml", seed=seed)[0])
        for one, other in (("val", "train"), ("test", "train"), ("val", "test")):
            assert shared_pictures(found[one], found[other]) == []


def test_the_split_is_the_seeds_and_no_matter_of_rows_or_place(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    rows = [[r["image"], r["question"], r["answer"]] for r in rows_of(tiny_world)]

    def val_of(name: str, rows: list[list[str]], seed: int) -> set[str]:
        place = tmp_path / name
        shutil.copytree(folder, place)
        write_csv(place / "all.csv", ["image", "question", "answer"], rows)
        return {
            path.name for path in tables(started(place, tmp_path / f"{name}.yaml", seed=seed)[0])["val"].painting_paths
        }

    first = val_of("first", rows, 7)
    assert val_of("second", rows[::-1], 7) == first
    assert any(val_of(f"seed{seed}", rows, seed) != first for seed in range(3))


def test_artquests_three_files_are_read_where_they_are(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    for split, source in (("train", "train"), ("val", "val"), ("test", "val")):
        rows = [[r["image"], r["question"], r["answer"], r["question_type"]] for r in rows_of(tiny_world, source)]
        write_csv(folder / f"artquest_{split}.csv", ["image", "question", "answer", "question_type"], rows)
    config, report = started(folder, tmp_path / "my.yaml")
    assert config.dataset.train == (folder / "artquest_train.csv").resolve()
    assert config.dataset.image_root == (folder / "pictures").resolve()
    assert config.dataset.columns == Config().dataset.columns
    assert not (tmp_path / "my_data").exists()
    assert any("efficientnet.checkpoint: there is none" in text for text in report.assumed)
    assert len(tables(config)["train"]) == 30


@pytest.mark.parametrize(
    ("delimiter", "encoding", "settings"),
    [(";", "utf-8", ("semicolon", "utf-8")), ("\t", "utf-16", ("tab", "utf-16")), (",", "cp1252", ("auto", "cp1252"))],
)
def test_what_the_files_are_written_in_stands_in_the_config(
    tiny_world: Path, folder: Path, tmp_path: Path, delimiter: str, encoding: str, settings: tuple[str, str]
) -> None:
    for split in ("train", "val"):
        rows = [[r["question"] + " – Käse", r["image"], r["answer"]] for r in rows_of(tiny_world, split)]
        write_csv(folder / f"{split}.tsv", ["Frage", "Bild", "Antwort"], rows, delimiter, encoding)
    config, _ = started(folder, tmp_path / "my.yaml")
    assert (config.dataset.delimiter, config.dataset.encoding) == settings
    assert config.dataset.columns.question == "Frage"
    assert {question[-6:] for _, question, *_ in texts(tables(config))} == {"– Käse"}


@pytest.mark.parametrize(
    ("names", "encoding"), [(["img", "query", "label"], "utf-8"), (["image", "question", "answer"], "latin-1")]
)
def test_files_that_are_written_differently_are_written_anew(
    tiny_world: Path, folder: Path, tmp_path: Path, names: list[str], encoding: str
) -> None:
    for split, header, written in (("train", ["image", "question", "answer"], "utf-8"), ("val", names, encoding)):
        rows = [[r["image"], r["question"] + " é", r["answer"]] for r in rows_of(tiny_world, split)]
        write_csv(folder / f"{split}.csv", header, rows, encoding=written)
    config, _ = started(folder, tmp_path / "my.yaml")
    assert config.dataset.train == (tmp_path / "my_data" / "train.csv").resolve()
    assert {question[-1] for _, question, *_ in texts(tables(config))} == {"é"}
    again, _ = started(folder, tmp_path / "again.yaml")
    assert texts(tables(again)) == texts(tables(config))


def test_aquas_json_and_semarts_folder(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    """As the two lie on disk: AQUA's lists, and SemArt's captions, tab-separated in Latin-1, beside its Images/."""
    (folder / "pictures").rename(folder / "Images")
    for split, source in (("train", "train"), ("val", "val"), ("test", "val")):
        items = [
            {
                "image": r["image"],
                "question": r["question"],
                "answer": r["answer"],
                "need_external_knowledge": n % 2 == 0,
            }
            for n, r in enumerate(rows_of(tiny_world, source))
        ]
        (folder / "AQUA").mkdir(exist_ok=True)
        (folder / "AQUA" / f"{split}.json").write_text(json.dumps(items))
        semart = ["IMAGE_FILE", "DESCRIPTION", "AUTHOR", "TITLE", "TECHNIQUE", "DATE", "TYPE", "SCHOOL", "TIMEFRAME"]
        write_csv(folder / f"semart_{split}.csv", semart, [["train0.png", "Café", *"ABCDEFG"]], "\t", "latin-1")
    config, report = started(folder, tmp_path / "my.yaml")
    found = tables(config)
    assert {split: len(table) for split, table in found.items()} == {"train": 30, "val": 11, "test": 11}
    assert set(found["train"].question_types) == {"knowledge", "visual"}
    assert config.dataset.image_root == (folder / "Images").resolve()
    assert [text for text in report.unused if text.startswith("semart_train.csv")] == [
        "semart_train.csv: captions, no questions"
    ]


def test_columns_are_asked_for_where_names_say_nothing(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    rows = [[r["answer"], r["question"], r["image"], r["image"]] for r in rows_of(tiny_world)]
    write_csv(folder / "all.csv", ["c1", "c2", "c3", "c4"], rows)
    with pytest.raises(UserError, match=r"(?s)all\.csv: no column of question or answer among 'c1'.*--question-column"):
        init(InitOptions(folder, tmp_path / "my.yaml"))
    columns = (("question", "c2"), ("answer", "c1"))
    found = tables(started(folder, tmp_path / "my.yaml", columns=columns)[0])
    assert texts(found) == {(r["image"], r["question"], r["answer"], "") for r in rows_of(tiny_world)}
    with pytest.raises(UserError, match=r"--answer-column c9: no table has such a column; give one of 'c1', 'c2'"):
        init(InitOptions(folder, tmp_path / "other.yaml", columns=(("answer", "c9"),)))


def test_of_two_names_the_one_with_pictures_is_taken(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    rows = [["Mona Lisa", r["image"], r["question"], r["answer"]] for r in rows_of(tiny_world)]
    write_csv(folder / "all.csv", ["painting", "file", "question", "answer"], rows)
    _, report = started(folder, tmp_path / "my.yaml")
    assert "all.csv: image is 'file', and not 'painting'" in report.assumed


def test_wrong_rows_are_told_or_left_out_as_asked_for(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    rows = [[r["image"], r["question"], r["answer"]] for r in rows_of(tiny_world)]
    (folder / "thumbs").mkdir()
    shutil.copy(folder / "pictures" / "train0.png", folder / "thumbs" / "train0.png")
    wrong = [["none.png", "q", "a"], ["train2.png", "q", ""], ["train2.png", "q", "a\nb"]]
    write_csv(folder / "all.csv", ["image", "question", "answer"], [*rows, *wrong])
    with pytest.raises(UserError) as caught:
        init(InitOptions(folder, tmp_path / "my.yaml"))
    for part in (
        "all.csv:2: picture 'train0.png' is ambiguous: ",
        "all.csv:43: picture 'none.png' is missing",
        "all.csv:44: empty answer",
        "all.csv:45: answer 'a\\nb' holds a line break",
        ": 4 problems with its questions; correct them, or add --leave-out-wrong",
    ):
        assert part in str(caught.value), part
    assert not (tmp_path / "my.yaml").exists()
    config, report = started(folder, tmp_path / "my.yaml", leaves_out=True)
    assert sum(len(table) for table in tables(config).values()) == 40  # train0.png has one question
    assert any("left out, as asked for: 1 x picture: " in text for text in report.assumed)


def test_what_init_has_written_is_no_table_for_another_init(tiny_world: Path, folder: Path) -> None:
    rows = [[r["image"], r["question"], r["answer"]] for r in rows_of(tiny_world)]
    write_csv(folder / "all.csv", ["image", "question", "answer"], rows)
    init(InitOptions(folder, folder / "one.yaml"))
    init(InitOptions(folder, folder / "two.yaml"))
    assert load_config(folder / "one.yaml").dataset.image_root == (folder / "pictures").resolve()
    written = [(folder / f"{name}_data" / "val.csv").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert "train: one_data/train.csv" in (folder / "one.yaml").read_text()  # so that the folder can be moved


def test_ids_that_are_used_twice_are_not_read(tiny_world: Path, folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        rows = [[r["image"], r["question"], r["answer"], "7"] for r in rows_of(tiny_world, split)]
        write_csv(folder / f"{split}.csv", ["image", "question", "answer", "question_id"], rows)
    config, _ = started(folder, tmp_path / "my.yaml")
    assert config.dataset.columns.question_id is None
    assert "    question_id: null" in (tmp_path / "my.yaml").read_text()
    assert len(tables(config)["train"]) == 30
