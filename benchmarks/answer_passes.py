"""How many passes through OPT a table's answers take, each of which reads all of its weights; without a model.

    python benchmarks/answer_passes.py

Where OPT streams a pass takes what the link needs for 5 GB, however few answers go on, so passes a question are nearly
all of an evaluation's time. They follow from the answers' lengths, which are made up here and seeded: five of six types
of question have answers of 3 to 6 tokens; the sixth, titles, 5 and more with a mean of 11; one answer in 200 does not
end before 100.
"""

import numpy as np

from artkv.evaluation.generation import SHARE_LEFT
from artkv.models.opt.decoding import CHUNK_STEPS

QUESTIONS, MOST_TOKENS = 20_000, 100
# What fits in 6 GB by the count of before and by today's; on large cards before and today.
AT_ONCE = (75, 310, 512, 2048)


def main() -> None:
    """Prints a table."""
    lengths = random_lengths()
    print(
        f"answers of {lengths.mean():.1f} tokens in the mean, {np.percentile(lengths, 99):.0f} in the 99th percentile\n"
    )
    print("| questions at once | passes for 1000 questions, each batch to its end | its last eighth left | |")
    print("|---|---|---|---|")
    for at_once in AT_ONCE:
        whole, left = (1000 * passes(lengths, at_once, share) / QUESTIONS for share in (None, SHARE_LEFT))
        print(f"| {at_once} | {whole:.0f} | {left:.0f} | {whole / left:.1f} |")


def random_lengths() -> np.ndarray:
    """Tokens of each answer, its newline included."""
    rng = np.random.default_rng(0)
    titles = 4 + rng.geometric(0.15, QUESTIONS)
    lengths = np.where(rng.random(QUESTIONS) < 5 / 6, rng.integers(3, 7, QUESTIONS), titles)
    lengths[rng.random(QUESTIONS) < 1 / 200] = MOST_TOKENS
    return np.minimum(lengths, MOST_TOKENS)


def passes(lengths: np.ndarray, at_once: int, share: int | None) -> int:
    """As `Generation` goes about it on one rank. share: a batch leaves one answer in so many; None: none."""
    counted, waiting, going_on = 0, lengths[:0], max(1, at_once // 2)

    def decode(some: np.ndarray, is_last: bool) -> np.ndarray:
        nonlocal counted
        leave = 0 if share is None or is_last else len(some) // share
        steps, rest = steps_of(some, leave)
        counted += steps
        return rest

    batches = [lengths[start : start + at_once] for start in range(0, len(lengths), at_once)]
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)
        waiting = np.concatenate([waiting, decode(batch, is_last and not len(waiting))])
        while len(waiting) and (is_last or len(waiting) >= going_on):
            some, others = waiting[:going_on], waiting[going_on:]
            waiting = np.concatenate([others, decode(some, is_last and not len(others))])
    return counted


def steps_of(lengths: np.ndarray, leave: int) -> tuple[int, np.ndarray]:
    """The passes of a batch, and the tokens that the answers which it leaves still have to come."""
    step, most = 1, int(lengths.max())
    while step < most:
        rest = lengths[lengths > step]
        if len(rest) <= leave:
            return step, rest - step
        step += max(CHUNK_STEPS, step - 1)
    return most, lengths[:0]


if __name__ == "__main__":
    main()
