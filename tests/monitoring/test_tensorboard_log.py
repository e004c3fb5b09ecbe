"""Event files read back with TensorBoard's own reader."""

import errno
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from artkv.errors import UserError
from artkv.monitoring.cards import AnsweredQuestion, draw_card
from artkv.monitoring.tensorboard_log import TensorBoardLog

SAMPLE = AnsweredQuestion(
    Image.new("RGB", (200, 100), (10, 20, 200)), "Who painted this?", "Albrecht Dürer", "albrecht dürer"
)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def test_scalars_pictures_and_text_can_be_read_back(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.scalars(10, "train", {"loss": 0.5, "learning_rate": 1e-4})
    log.scalars(20, "train", {"loss": 0.25, "learning_rate": 5e-5})
    log.samples(20, [SAMPLE, SAMPLE])
    log.text("config", "model:\n  dtype: auto\n")
    log.close()
    events = read(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 0.5), (20, 0.25)]
    assert set(events.Tags()["images"]) == {"works/0", "works/1"}
    (image,) = events.Images("works/0")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(pixels, draw_card(SAMPLE))
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    model:\n      dtype: auto"


def test_event_file_lies_in_the_folder_itself(tmp_path: Path) -> None:
    TensorBoardLog(tmp_path).close()
    assert [path.name.startswith("events.out.tfevents.") for path in tmp_path.iterdir()] == [True]


def test_a_restart_hides_what_it_writes_again(tmp_path: Path) -> None:
    first = TensorBoardLog(tmp_path)
    for step in (10, 20, 30):
        first.scalars(step, "train", {"loss": float(step)})
    first.close()
    # The reader takes event files in the order of their names, which begin with the second of writing.
    (written,) = tmp_path.iterdir()
    earlier = "events.out.tfevents.1000000000.host.1.0"
    written.rename(tmp_path / earlier)
    second = TensorBoardLog(tmp_path, purge_step=21)
    second.scalars(30, "train", {"loss": -1.0})
    second.close()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("train/loss")] == [
        (10, 10.0), (20, 20.0), (30, -1.0),
    ]  # fmt: skip


def test_the_table_of_runs_has_settings_beside_a_curves_last_value(tmp_path: Path) -> None:
    """As TensorBoard's plugin reads it, from the folder's one event file."""
    log = TensorBoardLog(tmp_path)
    log.settings({"training.learning_rate": 1e-4, "kv_modulation.gate": "zero"}, "validation/exact_match")
    log.scalars(5, "validation", {"exact_match": 0.5})
    log.finished()
    log.close()
    assert len(list(tmp_path.iterdir())) == 1
    contents = read(tmp_path).PluginTagToContent("hparams")
    data = {name: plugin_data_pb2.HParamsPluginData.FromString(content) for name, content in contents.items()}
    (start,) = (one.session_start_info for one in data.values() if one.HasField("session_start_info"))
    assert start.hparams["training.learning_rate"].number_value == 1e-4
    assert start.hparams["kv_modulation.gate"].string_value == "zero"
    (experiment,) = (one.experiment for one in data.values() if one.HasField("experiment"))
    assert [info.name.tag for info in experiment.metric_infos] == ["validation/exact_match"]
    assert any(one.HasField("session_end_info") for one in data.values())


def test_what_is_not_finite_makes_no_histogram(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.histogram(1, "attention/mass_of_heads", np.full((2, 3), np.nan))
    log.histogram(2, "attention/mass_of_heads", np.array([np.nan, 1.0, np.inf]))
    log.close()
    assert [event.step for event in read(tmp_path).Histograms("attention/mass_of_heads")] == [2]


def test_a_disk_that_is_full_from_the_first_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", no_room)
    printed: list[threading.ExceptHookArgs] = []
    usual = printed.append
    monkeypatch.setattr(threading, "excepthook", usual)
    with pytest.raises(UserError, match="TensorBoard's events cannot be written .No space left on device.; make room"):
        TensorBoardLog(tmp_path)
    assert not printed
    assert threading.excepthook == usual
