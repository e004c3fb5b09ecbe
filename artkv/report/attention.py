"""Where the query tokens look in the paintings of some cases, for the page's script to lay over them."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artkv.config import Config
from artkv.errors import UserError
from artkv.report.cases import Case
from artkv.report.evidence import Evidence
from artkv.report.plots import bar_plot

if TYPE_CHECKING:  # the model, for which torch is needed, is the last thing that a report opens
    from artkv.evaluation.attention import PaintingAttention


def telling_rows(cases: Sequence[Case], most: int) -> list[int]:
    """Rows to look at: a question for each painting, those first whose answers differ."""
    first_of: dict[str, int] = {}
    for row in sorted(range(len(cases)), key=lambda row: not cases[row].differs):
        first_of.setdefault(cases[row].image, row)
    return list(first_of.values())[:most]


def read_attention(evidence: Evidence, config: Config, rows: Sequence[int]) -> "list[PaintingAttention]":
    """The attention of the rows' paintings, by the checkpoint that answered.

    Loads the model by `config`, on the device that is there. Raises `UserError` if it cannot be, or if the split's CSV
    file is no longer the one that was answered.
    """
    if evidence.checkpoint is None:
        raise UserError(
            f"{evidence.run_dir}: {evidence.evaluations[0].checkpoint}, which answered, is no longer among its "
            "checkpoints; evaluate another one"
        )
    from artkv.distributed import single_process
    from artkv.evaluation.attention import attention_of
    from artkv.session import Session

    session = Session(config, single_process(), [evidence.split]).load(evidence.checkpoint)
    questions, answered = session.questions[evidence.split], evidence.evaluations[0].predictions
    if list(questions.table.questions) != answered.columns["question"]:
        raise UserError(
            f"dataset.{evidence.split}: is not the CSV file that was answered; give that one with --set "
            f"dataset.{evidence.split}=FILE"
        )
    return attention_of(session.model, questions, rows)


def describe(attentions: "Sequence[PaintingAttention]", has_prefix: bool) -> dict[str, Any]:
    """What the page says of them: `text`, their `count`, and where there is a prefix a `plot` of its share by layer."""
    text = (
        "Of some paintings this file has maps of the Q-Former's attention, in the details of their questions: bright "
        "is where its query tokens look, as the mean over layers, heads and query tokens. The question plays no part "
        "in it. "
    )
    if not has_prefix:
        return {"text": text, "count": len(attentions), "plot": None}
    from artkv.evaluation.attention import mass_over_paintings, sizes_over_paintings

    over_paintings = mass_over_paintings(attentions)
    if over_paintings is None:
        text += "What is injected takes no attention from the picture, so there is no share of it to show."
        if sizes := sizes_over_paintings(attentions):
            told = ", ".join(f"{name.replace('_', ' ')} {size:.3g}" for name, size in sizes.items())
            text += f" Instead, as root mean squares over these paintings, layers and heads: {told}."
        return {"text": text, "count": len(attentions), "plot": None}
    mass_ZH, _ = over_paintings
    share = 100 * mass_ZH.mean()
    text += f"Over these paintings {share:.1f}% of the attention is on the prefix tokens, not on the picture."
    by_layer = [(f"layer {place}", float(mass)) for place, mass in enumerate(mass_ZH.mean(axis=1), start=1)]
    plot = bar_plot(
        "Share of the attention that is on the prefix tokens", by_layer, max(share for _, share in by_layer)
    )
    return {"text": text, "count": len(attentions), "plot": plot}


def as_json(attentions: "Sequence[PaintingAttention]", has_prefix: bool) -> dict[str, Any]:
    """What the page's script draws: for each row its maps, each with a title and what it says in words."""
    return {"cases": [{"row": one.row, "maps": _maps(one, has_prefix)} for one in attentions]}


def _maps(attention: "PaintingAttention", has_prefix: bool) -> list[dict[str, Any]]:
    if not has_prefix:
        return [_drawn("no prefix", attention.map_off, "")]
    words = ""
    if attention.mass is not None:
        words = f"; {100 * attention.mass.mean():.0f}% of all attention is on the prefix tokens"
    return [_drawn("prefix on", attention.map_on, words), _drawn("prefix off", attention.map_off, "")]


def _drawn(title: str, shares: NDArray[np.float64], words: str) -> dict[str, Any]:
    """A map as a byte for each patch, 255 its most."""
    scaled = np.rint(255 * shares / max(shares.max(), 1e-12)).astype(np.uint8)
    row, column = (int(place) for place in np.unravel_index(shares.argmax(), shares.shape))
    where = _place(row, column, shares.shape[0])
    return {
        "title": title,
        "words": f"most at the {where}{words}",
        "grid": list(shares.shape),
        "bytes": base64.b64encode(scaled.tobytes()).decode("ascii"),
    }


def _place(row: int, column: int, edge: int) -> str:
    """Such as upper left, centre or lower right."""
    vertical = ("upper", "", "lower")[min(3 * row // edge, 2)]
    horizontal = ("left", "", "right")[min(3 * column // edge, 2)]
    return " ".join(word for word in (vertical, horizontal) if word) or "centre"
