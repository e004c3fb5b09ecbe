"""The names in a run's folder."""

from pathlib import Path

from artkv.run_folder.layout import best_checkpoint, checkpoint_name, checkpoints_newest_first


def test_checkpoints_are_listed_by_step_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    assert checkpoints_newest_first(tmp_path) == []
    for name in [checkpoint_name(20), checkpoint_name(5), checkpoint_name(100), "stale_step_00000200", ".step_1.tmp"]:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoints_newest_first(tmp_path) == ["step_00000100", "step_00000020", "step_00000005"]


def test_the_best_is_where_its_link_points(tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path) is None
    (tmp_path / "best").symlink_to("checkpoints/step_00000005")
    assert best_checkpoint(tmp_path) == "step_00000005"
