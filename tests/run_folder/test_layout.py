"""The names in a run's folder, and what is none of artkv's."""

from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.run_folder.layout import best_checkpoint, checkpoint_name, checkpoints_newest_first, is_own_best, step_of

OTHERS = [
    "stale_step_00000200", ".step_1.tmp", ".step_00000007.tmp", "step_00000003_keep", "step_00000012.bak", "step_3",
    "step_0000003", "step_000000030", "step_", "step_notes.txt", "xstep_00000003", "step_0000000x", "STEP_00000003",
    "step_00000003 ", "step_00000003\n", "step_-0000003", "step_+0000003", "step_0000_003", "step_\u0660\u06600000003",
]  # fmt: skip


def test_checkpoints_are_listed_by_step_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    assert checkpoints_newest_first(tmp_path) == []
    steps = [20, 5, 100, 123_456_789, 99_999_999]
    for name in [*map(checkpoint_name, steps), *OTHERS]:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000300").write_text("a file")
    names = checkpoints_newest_first(tmp_path)
    assert names == [checkpoint_name(step) for step in sorted(steps, reverse=True)]
    assert [step_of(name) for name in names] == sorted(steps, reverse=True)
    assert not any(map(step_of, OTHERS))


def test_what_cannot_be_listed_is_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    folder.symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match=r"checkpoints: is a link to .*/not mounted, which cannot be listed \(No such"):
        checkpoints_newest_first(tmp_path)
    folder.unlink()
    folder.write_text("a file")
    with pytest.raises(UserError, match=r"checkpoints: cannot be listed \(Not a directory\); mount its disk"):
        checkpoints_newest_first(tmp_path)
    folder.unlink()
    folder.mkdir()

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("artkv.run_folder.layout.os.scandir", refused)  # root may list everything
    with pytest.raises(
        UserError, match=r"cannot be listed \(Permission denied\); give this user permission to read it \(chmod u\+rx "
    ):
        checkpoints_newest_first(tmp_path)


def test_the_best_is_where_its_link_points(tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path) is None
    (tmp_path / "best").symlink_to("checkpoints/step_00000005")
    assert best_checkpoint(tmp_path) is None  # it is not there any more
    assert is_own_best(tmp_path)
    (tmp_path / "checkpoints" / "step_00000005").mkdir(parents=True)
    assert best_checkpoint(tmp_path) == "step_00000005"


def test_the_checkpoints_may_lie_on_another_disk(tmp_path: Path) -> None:
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run_dir.mkdir()
    (elsewhere / "step_00000005").mkdir(parents=True)
    (run_dir / "checkpoints").symlink_to(elsewhere)
    (run_dir / "best").symlink_to("checkpoints/step_00000005")
    assert checkpoints_newest_first(run_dir) == ["step_00000005"]
    assert best_checkpoint(run_dir) == "step_00000005"


@pytest.mark.parametrize("target", ["/etc", "checkpoints/step_5", "../other/checkpoints/step_00000005", "best"])
def test_a_link_to_anything_else_is_not_the_best(tmp_path: Path, target: str) -> None:
    (tmp_path / "best").symlink_to(target)
    assert best_checkpoint(tmp_path) is None
    assert not is_own_best(tmp_path)
