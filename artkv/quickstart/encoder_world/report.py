"""What the sweep over encoders shows, and what of it is not as the world was made."""

from collections.abc import Mapping

from artkv.errors import RunFailed
from artkv.evaluation.scores import format_columns
from artkv.quickstart.encoder_world.pictures import SCHOOLS
from artkv.quickstart.encoder_world.questions import LEFT, RIGHT, SCHOOL
from artkv.quickstart.encoder_world.settings import COMBINATIONS
from artkv.quickstart.paintings import STYLES
from artkv.sweep.plan import Sweep
from artkv.sweep.results import read_results

_LEAST = 0.9
# Two styles that are known without their places are 0.5 by luck; a school without one of its two halves is 1/3.
_MOST_WITHOUT_PLACE, _MOST_WITHOUT_BOTH = 0.6, 0.45

# Exact match by combination and type of question.
Table = Mapping[str, Mapping[str, float]]


def report(sweep: Sweep) -> None:
    """Prints the table; raises `RunFailed` if it is not what the world should show."""
    table = read_table(sweep)
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    lines = [["combination", *kinds], *([name, *(f"{row[k]:.3f}" for k in kinds)] for name, row in table.items())]
    print(f"\nExact match on test paintings; chance at a half is {1 / len(STYLES):.3f}, at school ", end="")
    print(f"{1 / len(SCHOOLS):.3f}:\n\n{format_columns(lines)}")
    if surprises := find_surprises(table):
        raise RunFailed("the scores are not what this world was made to show: " + "; ".join(surprises))


def read_table(sweep: Sweep) -> Table:
    """Mean exact match over seeds; the sweep's settings are in the order of `COMBINATIONS`."""
    results, _ = read_results(sweep)
    kinds = list(results[0].scores[0]["on"].by_type)
    return {
        combination.name: {kind: sum(values) / len(values) for kind in kinds if (values := result.values(kind))}
        for combination, result in zip(COMBINATIONS, results, strict=True)
    }


def find_surprises(table: Table) -> list[str]:
    """What is not as it should be; empty if places need the map, and schools both encoders."""
    surprises = []
    for combination in COMBINATIONS:
        encoders = dict(combination.encoders)
        expected = {kind: (encoders.get("brushwork") == "map", _MOST_WITHOUT_PLACE) for kind in (LEFT, RIGHT)}
        expected[SCHOOL] = (len(encoders) == 2, _MOST_WITHOUT_BOTH)
        if combination.injection == "decoupled":  # whether it finds the places in so many steps is what a run shows
            del expected[LEFT], expected[RIGHT]
        for kind, (is_known, most) in expected.items():
            value = table[combination.name][kind]
            if is_known and value < _LEAST:
                surprises.append(f"{kind} with {combination.name} is {value:.3f}, expected at least {_LEAST}")
            if not is_known and value > most:
                surprises.append(f"{kind} with {combination.name} is {value:.3f}, expected at most {most}")
    return surprises
