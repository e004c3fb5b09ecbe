"""TensorBoard: curves, the run's settings, and paintings with question, answer and prediction beneath."""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from artkv.errors import UserError
from artkv.files import reason_of
from artkv.monitoring.appended_file import AppendedFile
from artkv.monitoring.cards import AnsweredQuestion, draw_card
from artkv.monitoring.tags import tag_of


@contextmanager
def _told_by_flush() -> Iterator[None]:
    """Keeps the writer's thread, whose OSError `flush` raises too, from printing its traceback."""
    usual, others = threading.excepthook, set(threading.enumerate())

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):
            usual(failure)

    threading.excepthook = hook
    try:
        yield
    except OSError:
        for thread in set(threading.enumerate()) - others:
            thread.join(1)  # it prints, if it does, as its last act
        raise
    finally:
        threading.excepthook = usual


class TensorBoardLog:
    """Writes event files into the run's folder itself, where `tensorboard --logdir outputs` finds them.

    `purge_step`: on a resume, the first step that will be written again; TensorBoard then hides what
    an earlier process wrote for this and later steps. None for a fresh start.

    A disk that is full for a while costs no event, see `AppendedFile`. Raises `UserError` if the file cannot be made.
    """

    def __init__(self, run_dir: str | Path, purge_step: int | None = None) -> None:
        try:
            with _told_by_flush():
                self._writer = SummaryWriter(log_dir=str(run_dir), purge_step=purge_step)
                self._writer.flush()
            events = self._writer._get_file_writer().event_writer
            # The writer's thread would end with the first write that fails, and with it all that is written later.
            events._async_writer._writer._writer = AppendedFile(Path(events._file_name))
        except OSError as error:
            raise UserError(
                f"{run_dir}: TensorBoard's events cannot be written ({reason_of(error)}); make room, or give another "
                "run.output_dir"
            ) from None
        self._settings_end: Any = None

    def scalars(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Writes each metric under the tag that `tag_of` gives it, all in one event."""
        values = [Summary.Value(tag=tag_of(kind, name), simple_value=float(value)) for name, value in metrics.items()]
        self._writer._get_file_writer().add_summary(Summary(value=values), step)

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        """Writes how the values are spread; nothing where none is finite, which the losses tell."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self._writer.add_histogram(tag, finite, step)

    def image(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        """Writes a picture, (height, width, 3) from 0 to 255."""
        encoded = io.BytesIO()
        # As `add_image` does it takes six times as long, in which training waits, for a fifth of the bytes.
        Image.fromarray(pixels).save(encoded, format="PNG", compress_level=1)
        height, width, colours = pixels.shape
        picture = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=encoded.getvalue())
        summary = Summary(value=[Summary.Value(tag=tag, image=picture)])
        self._writer._get_file_writer().add_summary(summary, step)

    def samples(self, step: int, samples: Sequence[AnsweredQuestion]) -> None:
        """Draws each sample under the tag `works/0`, `works/1`, ...; give the same ones each time."""
        for position, sample in enumerate(samples):
            self.image(step, f"works/{position}", draw_card(sample))

    def settings(self, settings: Mapping[str, float | str], metric: str) -> None:
        """Begins the run's line in the table of runs, whose column `metric` shows that tag's last value."""
        experiment, beginning, self._settings_end = hparams(dict(settings), {metric: 0.0})
        self._writer._get_file_writer().add_summary(experiment)
        self._writer._get_file_writer().add_summary(beginning)

    def finished(self) -> None:
        """Says in the table of runs that the run is finished."""
        self._writer._get_file_writer().add_summary(self._settings_end)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Writes preformatted text, such as the resolved config."""
        # Markdown's indented block: unlike a fence, no content can end it.
        self._writer.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def flush(self) -> None:
        """Writes what is still queued to the event file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
