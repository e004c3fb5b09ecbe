"""The arguments of `artkv ask`: a mistyped picture is told, with what may have been meant, before it loads."""

from pathlib import Path

import pytest

from artkv import cli
from artkv.errors import UserError
from artkv.single_question import check_picture


@pytest.mark.parametrize(
    ("picture", "question", "told"),
    [
        ("-", "What?", "IMAGE -: standard input is not read; save the picture as a file, and give its path"),
        ("https://a.org/b.jpg", "What?", "IMAGE https://a.org/b.jpg: is an address, and none is fetched"),
        ("s3://bucket/b.jpg", "What?", "is an address, and none is fetched"),
        (".", "What?", "IMAGE .: is a folder; give the path of one picture in it"),
        ("*.png", "What?", "no such file, and a pattern is not looked for; give the path of one picture"),
        ("What?", "there.png", r"IMAGE What?: no such file, while QUESTION there.png is one; give IMAGE first"),
        ("Who\x1b[2J?", "What", r"IMAGE Who\x1b[2J?: no such file, and a pattern"),
        ("none.png", "x" * 300, "IMAGE none.png: no such file; give the path of a picture, then the question in quot"),
    ],
)
def test_what_is_no_picture_is_told_with_what_may_have_been_meant(
    picture: str, question: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.png").touch()
    with pytest.raises(UserError) as caught:
        check_picture(picture, question)
    assert told in str(caught.value)


def test_what_is_there_or_in_a_file_or_may_not_be_seen_is_left_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    (tmp_path / "link.png").symlink_to("gone")
    for given in (tmp_path / "a.tar" / "one.png", tmp_path / "link.png", tmp_path / ("n" * 300)):
        check_picture(str(given), "What?")


def test_a_drawing_over_somebodys_picture_is_refused_before_the_model_is_loaded(
    tmp_path: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from artkv import api, single_question

    def not_loaded(*_: object) -> None:
        raise AssertionError("loaded first")

    monkeypatch.setattr(api, "load_model", not_loaded)
    monkeypatch.setattr(single_question, "open_given", lambda options, given: (None, None))
    picture = tiny_world / "images" / "val0.png"
    own = tmp_path / "mine.png"
    own.write_bytes(picture.read_bytes())
    assert cli.main(["ask", "--checkpoint", "x", str(picture), "What?", "--attention", str(own)]) == 1
    assert f"--attention {own}: is there already, and no drawing of artkv ask" in capsys.readouterr().err
