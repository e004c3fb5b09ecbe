"""How long a rank may be silent: learned from the run, for each thing that it can be at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from artkv.run_folder.heartbeat import PULSE_SECONDS, Beat, Phase

# Seconds that a phase may be silent for before anything is known of it: weights of a size and a disk never seen.
_UNLEARNED = 600.0
# Seconds without a word from which on a silence may be the disk's: steps that are longer are few.
_QUIET = 5.0
# How much longer than ever before it may last.
_FACTOR = 3.0
# What is learned of the seconds between two pulses, beside the phases. While it starts a rank may have none for long,
# since Python's lock is held while a library is loaded: how long, the first start has to show.
_PULSE, _STARTING_PULSE = "pulse", "pulse while starting"
# The seconds until the first sign of all: short, since a rank says something before it loads anything.
_LAUNCH: Literal["launch"] = "launch"


@dataclass(frozen=True)
class Silence:
    """A rank that has been silent for too long. beat: what it said last. seconds: since then.

    has_pulse: whether its process runs all the same.
    """

    beat: Beat
    seconds: float
    has_pulse: bool


@dataclass(frozen=True)
class _Heard:
    """What a rank said last, and the looks at which that, and its last pulse, were new.

    longest_pause: seconds between two pulses, or other signs, of this start.
    """

    beat: Beat
    look: int
    pulse_look: int
    longest_pause: float = 0.0


class Watch:
    """Looks at the ranks' heartbeats again and again, and knows what is usual.

    least: seconds of silence that are always allowed. interval: seconds between two looks. Time is counted in looks: a
    machine that stood still, or a file server that did, has not made the ranks silent.
    """

    def __init__(self, least: float, interval: float) -> None:
        self._least = least
        self._interval = interval
        self._longest: dict[str, float] = {}
        self._last: dict[int, _Heard] = {}
        self._looks = 0

    def begin(self) -> None:
        """A new start of all ranks; what was learned stays."""
        self._last = {}
        self._looks = 0

    def allowed(self, phase: Phase | Literal["launch"]) -> float:
        """Seconds for which a rank may be silent in a phase."""
        longest = self._longest.get(phase)
        return max(self._least, _UNLEARNED if longest is None else _FACTOR * longest)

    def look(self, beats: Mapping[int, Beat]) -> Silence | None:
        """Takes note of what the ranks said last, and returns the one that is silent too long, if there is one.

        Of several it is the one without a pulse, or that fell silent first: the others wait for it.
        """
        self._looks += 1
        for rank, beat in beats.items():
            last = self._last.get(rank)
            is_new = last is None or beat.count != last.beat.count
            if is_new:
                for phase, seconds in beat.longest.items():
                    self._learn(phase, seconds)
            if last is None:
                self._learn(_LAUNCH, self._looks * self._interval)
                self._last[rank] = _Heard(beat, self._looks, self._looks)
            elif is_new or beat.pulse != last.beat.pulse:
                self._last[rank] = self._heard_again(last, beat, is_new)
        found = [silence for heard in self._last.values() if (silence := self._silence_of(heard)) is not None]
        return max(
            found, key=lambda silence: (not silence.has_pulse, silence.seconds, -silence.beat.rank), default=None
        )

    def _heard_again(self, last: _Heard, beat: Beat, is_new: bool) -> _Heard:
        pause = max(last.longest_pause, self._seconds(last.pulse_look))
        if beat.phase != "starting":
            self._learn(_STARTING_PULSE if last.beat.phase == "starting" else _PULSE, pause)
            pause = 0.0
        return _Heard(beat, self._looks if is_new else last.look, self._looks, pause)

    def _silence_of(self, heard: _Heard) -> Silence | None:
        phase, seconds, pause = heard.beat.phase, self._seconds(heard.look), self._seconds(heard.pulse_look)
        usual = self._longest.get(_STARTING_PULSE if phase == "starting" else _PULSE)
        is_judged = phase != "ended" and (phase != "starting" or usual is not None)
        if is_judged and pause > max(self._least, _FACTOR * max(usual or 0.0, PULSE_SECONDS)):
            return Silence(heard.beat, pause, has_pulse=False)
        return Silence(heard.beat, seconds, has_pulse=True) if seconds > self.allowed(phase) else None

    def _seconds(self, since: int) -> float:
        """From a look until the last one."""
        return (self._looks - since) * self._interval

    @property
    def is_quiet(self) -> bool:
        """Whether some rank, or all of them since the start, have said nothing for a while."""
        since = min((heard.look for heard in self._last.values()), default=0)
        return self._seconds(since) > min(_QUIET, self._least / 2)

    @property
    def is_silent_from_the_first(self) -> bool:
        """Whether no rank has said anything since the start, for longer than a start may take."""
        return not self._last and self._looks * self._interval > self.allowed(_LAUNCH)

    def was_alive(self, silence: Silence) -> None:
        """Learns that a rank was well though it was silent: from now on twice as long is allowed there."""
        phase: str = silence.beat.phase
        if not silence.has_pulse:
            phase = _STARTING_PULSE if phase == "starting" else _PULSE
        self._learn(phase, 2 * silence.seconds / _FACTOR)

    def _learn(self, phase: str, seconds: float) -> None:
        self._longest[phase] = max(seconds, self._longest.get(phase, 0.0))
