"""How long the warm-up is."""

import pytest

from artkv.config import TrainingConfig
from artkv.errors import UserError
from artkv.training.schedule import warmup_steps


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (10, 1), (324, 19), (5000, 300), (10**6, 500)])
def test_auto_is_a_share_of_the_run_and_bounded(steps: int, warmup: int) -> None:
    assert warmup_steps(TrainingConfig(), steps) == warmup


def test_a_number_is_obeyed_if_something_of_the_run_is_left() -> None:
    assert warmup_steps(TrainingConfig(warmup_steps=17), 18) == 17
    assert warmup_steps(TrainingConfig(warmup_steps=0), 1) == 0
    for too_many in (18, 500):
        with pytest.raises(UserError) as error:
            warmup_steps(TrainingConfig(warmup_steps=too_many), 18)
        assert f"training.warmup_steps = {too_many}: the run has 18 steps" in str(error.value)
        assert "give fewer, such as 1, or auto" in str(error.value)
