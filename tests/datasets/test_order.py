"""The order as a pure function, each question exactly once, and the same steps on any ranks."""

import numpy as np
import pytest

from artkv.datasets.order import (
    EpochPlan,
    evaluation_micro_batches,
    micro_batches,
    painting_order,
    plan_epoch,
    plan_evaluation,
    rows_by_painting,
    training_micro_batches,
)
from artkv.errors import UserError


def table_of(num_paintings: int, max_questions: int, seed: int = 0) -> np.ndarray:
    """painting_of_row of a table whose paintings have 1 to max_questions rows, not adjacent."""
    rng = np.random.default_rng(seed)
    painting_of_row = np.repeat(np.arange(num_paintings), rng.integers(1, max_questions + 1, num_paintings))
    return rng.permutation(painting_of_row)


def steps_of(plan: EpochPlan, accumulation: int, world: int, first_step: int = 0) -> list[list[tuple]]:
    """What each step trains on, over all ranks and micro-steps: (rows, is_filler), in the plan's order."""
    shards = [list(training_micro_batches(plan, first_step, accumulation, rank, world)) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    steps = []
    for start in range(0, len(shards[0]), accumulation):
        by_place = [shards[r][start + a] for a in range(accumulation) for r in range(world)]
        steps.append([(tuple(m.rows.tolist()), m.is_filler) for m in by_place])
    return steps


def test_painting_order_is_a_fixed_permutation() -> None:
    order = painting_order(1000, seed=1337, epoch=3)
    assert sorted(order) == list(range(1000))
    np.testing.assert_array_equal(order, painting_order(1000, seed=1337, epoch=3))
    for seed, epoch in [(1337, 4), (1338, 3), (3, 1337)]:
        assert (order != painting_order(1000, seed, epoch)).mean() > 0.9
    # Written down once: another machine or NumPy must resume in the same order.
    assert painting_order(8, seed=1337, epoch=0).tolist() == [5, 1, 6, 7, 4, 0, 2, 3]


def test_painting_order_leaves_global_random_numbers_alone() -> None:
    before = np.random.get_state()[1].copy()
    painting_order(10, 0, 0)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_rows_by_painting_keeps_the_table_order() -> None:
    groups = rows_by_painting(np.array([0, 1, 0, 2, 1, 0]))
    assert [groups.of(p).tolist() for p in range(3)] == [[0, 2, 5], [1, 4], [3]]


def test_greedy_filling_by_hand() -> None:
    # Paintings of 2, 3, 1, 7 and 1 questions; at most 4 in a micro-batch; 7 are cut into 4 and 3.
    groups = rows_by_painting(np.repeat(np.arange(5), [2, 3, 1, 7, 1]))
    plan = micro_batches(groups, np.array([0, 2, 1, 3, 4]), batch_size=4)
    assert [plan[i].rows.tolist() for i in range(plan.num_micro_batches)] == [
        [0, 1, 5],  # 2 + 1, painting 1's three would make 6
        [2, 3, 4],
        [6, 7, 8, 9],
        [10, 11, 12, 13],  # painting 3's rest of three, and painting 4
    ]
    assert plan.groups_before.tolist() == [0, 2, 3, 4, 6]
    assert plan.num_groups == 6
    assert plan.rows.size == 14


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_groups_stay_whole_and_in_order(batch_size: int) -> None:
    painting_of_row = table_of(60, 9)
    plan = plan_epoch(painting_of_row, batch_size, seed=5, epoch=2)
    batches = [plan[i].rows for i in range(plan.num_micro_batches)]
    assert sorted(np.concatenate(batches)) == list(range(len(painting_of_row)))
    assert max(len(b) for b in batches) <= batch_size
    sizes = np.bincount(painting_of_row)
    homes: dict[int, set[int]] = {}
    for index, rows in enumerate(batches):
        for row in rows:
            homes.setdefault(int(painting_of_row[row]), set()).add(index)
    for painting, home in homes.items():
        assert len(home) == -(-sizes[painting] // batch_size)
    order = painting_order(60, 5, 2)
    assert list(dict.fromkeys(painting_of_row[plan.rows])) == order.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_each_question_counts_exactly_once(world: int, accumulation: int) -> None:
    painting_of_row = table_of(37, 6)
    plan = plan_epoch(painting_of_row, batch_size=8, seed=1, epoch=0)
    steps = steps_of(plan, accumulation, world)
    assert len(steps) == plan.num_steps(world * accumulation)
    assert all(len(step) == world * accumulation for step in steps)
    counted = [row for step in steps for rows, filler in step if not filler for row in rows]
    assert sorted(counted) == list(range(len(painting_of_row)))
    fillers = [rows for step in steps for rows, filler in step if filler]
    assert len(fillers) == len(steps) * world * accumulation - plan.num_micro_batches
    assert set(fillers) <= {tuple(plan[0].rows.tolist())}
    assert not any(filler for step in steps[:-1] for _, filler in step)
    assert not steps[-1][0][1]


def test_a_step_is_the_same_however_it_is_split() -> None:
    plan = plan_epoch(table_of(50, 6), batch_size=8, seed=1, epoch=7)
    alone = steps_of(plan, accumulation=4, world=1)
    assert steps_of(plan, accumulation=2, world=2) == alone
    assert steps_of(plan, accumulation=1, world=4) == alone
    assert len(alone) > 4


@pytest.mark.parametrize(("accumulation", "world"), [(4, 1), (2, 2), (1, 4)])
def test_resuming_in_the_middle_gives_the_remaining_steps(accumulation: int, world: int) -> None:
    plan = plan_epoch(table_of(50, 6), batch_size=8, seed=1, epoch=7)
    whole = steps_of(plan, accumulation=4, world=1)
    for stopped_before in range(len(whole) + 1):
        groups = plan.groups_before_step(stopped_before, 4)
        again = plan_epoch(table_of(50, 6), batch_size=8, seed=1, epoch=7)
        first_step = again.step_at_groups(groups, accumulation * world)
        assert first_step == stopped_before
        assert steps_of(again, accumulation, world, first_step) == whole[stopped_before:]


def test_positions_count_groups_and_questions() -> None:
    painting_of_row = table_of(50, 20)  # some paintings are cut
    plan = plan_epoch(painting_of_row, batch_size=8, seed=1, epoch=0)
    questions = 0
    for step in range(plan.num_steps(3)):
        assert plan.questions_before_step(step, 3) == questions
        questions += sum(len(m.rows) for m in (plan.micro_batch(step, i, 3) for i in range(3)) if not m.is_filler)
    assert plan.questions_before_step(plan.num_steps(3), 3) == questions == len(painting_of_row)
    cut = sum(-(-size // 8) for size in np.bincount(painting_of_row))
    assert plan.groups_before_step(plan.num_steps(3), 3) == plan.num_groups == cut


def test_a_position_between_steps_is_refused() -> None:
    plan = micro_batches(rows_by_painting(np.repeat(np.arange(8), 2)), np.arange(8), batch_size=4)
    assert plan.groups_before.tolist() == [0, 2, 4, 6, 8]
    assert plan.step_at_groups(4, 2) == 1
    for groups in (1, 2, 3, 9):
        with pytest.raises(UserError, match=rf"after {groups} groups .*resume with"):
            plan.step_at_groups(groups, 2)
    with pytest.raises(IndexError):
        plan.micro_batch(2, 0, 2)
    with pytest.raises(IndexError):
        plan.micro_batch(0, 2, 2)
    with pytest.raises(IndexError):
        plan.groups_before_step(3, 2)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_evaluation_asks_each_question_once(world: int) -> None:
    painting_of_row = table_of(11, 6)
    plan = plan_evaluation(painting_of_row, batch_size=6)
    shards = [list(evaluation_micro_batches(plan, rank, world)) for rank in range(world)]
    assert not any(m.is_filler for shard in shards for m in shard)
    asked = np.concatenate([m.rows for shard in shards for m in shard])
    assert sorted(asked) == list(range(len(painting_of_row)))
    assert list(dict.fromkeys(painting_of_row[plan.rows])) == list(range(11))


def test_more_ranks_than_micro_batches() -> None:
    plan = plan_epoch(np.array([0, 0, 1]), batch_size=2, seed=0, epoch=0)
    steps = steps_of(plan, accumulation=1, world=5)
    assert [filler for _, filler in steps[0]] == [False, False, True, True, True]
    assert [len(list(evaluation_micro_batches(plan, rank, 5))) for rank in range(5)] == [1, 1, 0, 0, 0]
