"""What each encoder and the coarse look can see of the paintings, on pixels, and what can be known without seeing."""

from collections import Counter, defaultdict

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from artkv.config.art_encoders import BLIND
from artkv.quickstart.encoder_world.pictures import (
    GREEN,
    HARMONIES,
    RED_AND_BLUE,
    SCHOOLS,
    Work,
    only,
    paint_work,
    works_of,
)
from artkv.quickstart.encoder_world.settings import ARCHITECTURE
from artkv.quickstart.encoder_world.world import NUM_COMPOSITIONS
from artkv.quickstart.paintings import COARSE_SIDE, STYLES
from artkv.quickstart.underpainting import Composition
from artkv.quickstart.world import compose

COMPOSITION = Composition("blue", "boat", "day", seed=3)


def pixels(work: Work) -> NDArray[np.float64]:
    return np.asarray(paint_work(work), np.float64)


def test_each_signal_is_in_its_own_channels() -> None:
    first = pixels(Work(COMPOSITION, "impasto", "mosaic", "analogous"))
    other_style = pixels(Work(COMPOSITION, "mosaic", "impasto", "analogous"))
    other_harmony = pixels(Work(COMPOSITION, "impasto", "mosaic", "complementary"))
    assert np.array_equal(first[..., [0, 2]], other_style[..., [0, 2]])
    assert np.array_equal(first[..., 1], other_harmony[..., 1])
    # The signals themselves are large, in 255ths.
    assert np.abs(first[..., 1] - other_style[..., 1]).mean() > 5
    assert np.abs(first[..., 2] - other_harmony[..., 2]).mean() > 5


def test_the_coarse_look_is_blind_to_halves_and_harmony() -> None:
    looks = [
        np.asarray(paint_work(work).resize((COARSE_SIDE, COARSE_SIDE), Image.Resampling.BICUBIC), np.float64)
        for work in works_of([COMPOSITION])
    ]
    # Clipping and rounding leave a little; the signals are 5 and more in the mean.
    assert max(np.abs(look - looks[0]).mean() for look in looks) < 1.0


def test_a_pooled_vector_is_blind_to_places_and_a_map_is_not() -> None:
    """Whatever the encoder has learnt: with random weights, of which nothing is hidden by training."""
    torch.manual_seed(0)
    network = timm.create_model(ARCHITECTURE, num_classes=0).eval()
    named = (("impasto", "mosaic"), ("mosaic", "impasto"), ("mosaic", "mosaic"))
    pictures = np.stack([pixels(Work(COMPOSITION, left, right, "triadic")) for left, right in named])
    with torch.no_grad():
        seen = torch.from_numpy(pictures / 255).float().permute(0, 3, 1, 2) - 0.45
        seen[:, [0, 2]] /= BLIND
        maps = network.forward_features(seen)
        one, other, third = network.forward_head(maps, pre_logits=True)
    # Sums in another order, in float32; what a style changes is a thousand times as much.
    assert (one - other).abs().max() < 1e-3 * (one - third).abs().max()
    assert (maps[0, ..., 1] - maps[1, ..., 3]).abs().max() < 1e-5
    assert (maps[0, ..., 1] - maps[1, ..., 1]).abs().max() > 0.1 * maps.std()
    assert torch.equal(maps[0, ..., [0, 2]], maps[1, ..., [0, 2]])  # the wall


def test_a_lesson_holds_one_encoders_channels() -> None:
    picture = paint_work(Work(COMPOSITION, "impasto", "impasto", "triadic"))
    seen = np.asarray(only(picture, GREEN))
    assert np.array_equal(seen[..., 1], np.asarray(picture)[..., 1])
    assert np.ptp(seen[..., 0]) == np.ptp(seen[..., 2]) == 0
    assert np.ptp(np.asarray(only(picture, RED_AND_BLUE))[..., 1]) == 0


def best_guess(known: list[tuple[object, str]]) -> float:
    """The share that is right of who answers with the most frequent answer to what it knows."""
    answers: dict[object, Counter[str]] = defaultdict(Counter)
    for what, answer in known:
        answers[what][answer] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(known)


def test_bounds_of_who_does_not_know_all() -> None:
    for split, count in NUM_COMPOSITIONS.items():
        works = list(works_of(compose(split, 1337)[:count]))
        diptychs = [work for work in works if work.is_diptych]
        whole = [work for work in works if not work.is_diptych]
        assert (len(diptychs), len(whole)) == (6 * count, 9 * count)
        pair = [((w.composition, frozenset((w.left, w.right)), w.harmony), w.left) for w in diptychs]
        assert best_guess(pair) == 1 / 2
        assert best_guess([(w.composition, w.left) for w in diptychs]) == 1 / len(STYLES)
        assert best_guess([(w.composition, w.right) for w in diptychs]) == 1 / len(STYLES)
        for alone in ("left", "harmony"):
            known = [((w.composition, getattr(w, alone)), w.school) for w in whole]
            assert best_guess(known) == 1 / len(SCHOOLS)
        assert best_guess([((w.left, w.harmony), w.school) for w in whole]) == 1
        assert set(Counter(w.harmony for w in whole).values()) == {3 * count}
        assert {w.harmony for w in whole} == set(HARMONIES)
