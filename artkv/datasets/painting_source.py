"""Where a batch's paintings come from: pictures decoded now, or features computed before.

Letters in shapes are explained in `artkv.batch`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from artkv.batch import PaintingFeatures, PaintingViews
from artkv.datasets.decoding import decoded
from artkv.datasets.pictures import PaintingTransform
from artkv.datasets.table import QuestionTable
from artkv.errors import UserError
from artkv.reading import printable


class PaintingSource(Protocol):
    """Gives the paintings of one table, by their numbers in it; to several threads at once."""

    def load(
        self, paintings: np.ndarray, art_paintings: np.ndarray, pin_memory: bool
    ) -> PaintingViews | PaintingFeatures:
        """For (I,) painting numbers what the ViT sees, and for (I,) others what the art encoders see.

        pin_memory: whether the result should lie in page-locked memory, where that costs no second copy.
        Raises `UserError` that names a painting that cannot be had.
        """

    def load_art(self, paintings: np.ndarray, pin_memory: bool) -> tuple[Tensor, ...]:
        """What each art encoder sees of (I,) paintings, or its features; empty where there are none."""

    def load_blank(self, number: int, pin_memory: bool) -> PaintingViews | PaintingFeatures:
        """So many times the plain grey picture, which tells nothing of a painting."""


class DecodedPictures:
    """Decodes the table's pictures and makes the encoders' views of them; see `PaintingSource`."""

    def __init__(self, table: QuestionTable, transform: PaintingTransform) -> None:
        self._csv_path = table.path
        self._paths = table.painting_paths
        self._transform = transform
        self._lines = np.zeros(table.num_paintings, dtype=np.int64)  # where each painting is named first
        self._lines[table.painting_of_row[::-1]] = table.line_numbers[::-1]

    def load(self, paintings: np.ndarray, art_paintings: np.ndarray, pin_memory: bool) -> PaintingViews:
        """(I, 3, E, E), each with the edge that its encoder wants."""
        views = [self._views(int(p), int(a)) for p, a in zip(paintings, art_paintings, strict=True)]
        return PaintingViews(_stacked([v for v, _ in views], pin_memory), _of_each([a for _, a in views], pin_memory))

    def load_art(self, paintings: np.ndarray, pin_memory: bool) -> tuple[Tensor, ...]:
        """(I, 3, E, E) of each art encoder."""
        return _of_each([self._art_views(int(painting)) for painting in paintings], pin_memory)

    def load_blank(self, number: int, pin_memory: bool) -> PaintingViews:
        """See `PaintingSource`."""
        vit_view, art_views = self._transform.blank()
        return PaintingViews(
            vit_view.expand(number, -1, -1, -1), tuple(view.expand(number, -1, -1, -1) for view in art_views)
        )

    def _views(self, painting: int, art_painting: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        with self._opened(painting) as picture:
            if art_painting == painting:
                return self._transform(picture)
            vit_view = self._transform.vit_view(picture)
        return vit_view, self._art_views(art_painting)

    def _art_views(self, painting: int) -> tuple[Tensor, ...]:
        if not self._transform.art:
            return ()
        with self._opened(painting) as picture:
            return self._transform.art_views(picture)

    @contextmanager
    def _opened(self, painting: int) -> Iterator[Image.Image]:
        with ExitStack() as held:
            try:
                picture = held.enter_context(decoded(self._paths[painting], max_pixels=self._transform.max_pixels))
            except UserError as error:
                place = f"{printable(self._csv_path)}:{self._lines[painting]}"
                raise UserError(f"{place}: {error}") from None
            yield picture


def _of_each(views: list[tuple[Tensor, ...]], pin_memory: bool) -> tuple[Tensor, ...]:
    """For each encoder its views of all paintings, stacked; views that encoders share are stacked once."""
    made: dict[int, Tensor] = {}
    for of_encoder in zip(*views, strict=True):
        made.setdefault(id(of_encoder[0]), _stacked(list(of_encoder), pin_memory))
    return tuple(made[id(view)] for view in views[0]) if views else ()


def _stacked(views: list[Tensor], pin_memory: bool) -> Tensor:
    stack = torch.empty((len(views), *views[0].shape), dtype=views[0].dtype, pin_memory=pin_memory)
    return torch.stack(views, out=stack)
