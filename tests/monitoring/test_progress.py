"""The progress display on a terminal, in a file, and on other ranks."""

import io

from artkv.monitoring.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_file_gets_a_plain_line_every_so_often() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = ProgressLine(100, steps_done=40, stream=stream, seconds_between_lines=30, now=clock)
    progress.show(loss=1.23456, questions_per_second=87.654)
    for _ in range(60):
        clock.seconds += 2
        progress.advance()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    # at once, then every 15 steps of 2 seconds, and at the end
    assert [line.split()[1] for line in lines] == ["41/100", "56/100", "71/100", "86/100", "100/100"]
    # 16 steps in 32 s leave 44 steps of 2 s: the steps before the resume do not make the rate look better
    assert lines[1] == "step 56/100  loss 1.235  questions/s 87.65  left 0:01:28"


def test_terminal_gets_a_bar_with_loss_rate_and_time_left() -> None:
    stream = Terminal()
    progress = ProgressLine(10, steps_done=4, stream=stream)
    progress.show(loss=0.5, questions_per_second=12.0)
    progress.advance()
    progress.note("checkpoint saved")
    progress.close()
    text = stream.getvalue()
    assert "\r" in text
    assert "5/10" in text.splitlines()[-1]
    assert "loss=0.5" in text
    assert "questions/s=12" in text
    assert "checkpoint saved\n" in text
    assert "<" in text.splitlines()[-1]  # tqdm's [elapsed<left, ...]


def test_other_ranks_are_silent() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = ProgressLine(3, rank=1, stream=stream, seconds_between_lines=0)
        progress.show(loss=1.0)
        progress.advance(3)
        progress.note("not here")
        progress.close()
        assert stream.getvalue() == ""


def test_note_goes_to_a_file_as_a_line() -> None:
    stream = io.StringIO()
    ProgressLine(3, stream=stream).note("evaluating")
    assert stream.getvalue() == "evaluating\n"
