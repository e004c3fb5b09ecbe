"""How long a rank may be silent: learned from the run, for each thing that it can be at."""

from collections.abc import Mapping
from dataclasses import dataclass

from artkv.run_folder.heartbeat import PULSE_SECONDS, Beat, Phase

# Seconds that a phase may be silent for before anything is known of it: weights of a size and a disk never seen.
_UNLEARNED = 600.0
# Seconds without a word from which on a silence may be the disk's: steps that are longer are few.
_QUIET = 5.0
# How much longer than ever before it may last.
_FACTOR = 3.0
# What is learned of the seconds between two pulses, beside the phases. While it starts a rank may have none for long:
# Python's lock is held while a library is loaded.
_PULSE = "pulse"


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
    """What a rank said last, and the looks at which that, and its last pulse, were new."""

    beat: Beat
    look: int
    pulse_look: int


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

    def allowed(self, phase: Phase) -> float:
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
            if last is None:
                self._learn("starting", self._looks * self._interval)
            elif beat.pulse != last.beat.pulse and beat.phase != "starting":
                self._learn(_PULSE, self._seconds(last.pulse_look))
            if last is None or beat.count != last.beat.count:
                for phase, seconds in beat.longest.items():
                    self._learn(phase, seconds)
                self._last[rank] = _Heard(beat, self._looks, self._looks)
            elif beat.pulse != last.beat.pulse:
                self._last[rank] = _Heard(beat, last.look, self._looks)
        found = [silence for heard in self._last.values() if (silence := self._silence_of(heard)) is not None]
        return max(
            found, key=lambda silence: (not silence.has_pulse, silence.seconds, -silence.beat.rank), default=None
        )

    def _silence_of(self, heard: _Heard) -> Silence | None:
        phase, seconds, without_pulse = heard.beat.phase, self._seconds(heard.look), self._seconds(heard.pulse_look)
        most = max(self._least, _FACTOR * self._longest.get(_PULSE, PULSE_SECONDS))
        if phase not in ("starting", "ended") and without_pulse > most:
            return Silence(heard.beat, without_pulse, has_pulse=False)
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
        return not self._last and self._looks * self._interval > self.allowed("starting")

    def was_alive(self, silence: Silence) -> None:
        """Learns that a rank was well though it was silent: from now on twice as long is allowed there."""
        self._learn(silence.beat.phase if silence.has_pulse else _PULSE, 2 * silence.seconds / _FACTOR)

    def _learn(self, phase: str, seconds: float) -> None:
        self._longest[phase] = max(seconds, self._longest.get(phase, 0.0))
