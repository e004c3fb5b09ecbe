"""The typed records that the layers pass along, and the letters of all shapes.

A tensor's name may end in its shape, a letter a dimension: `visual_IKD` is (paintings, query tokens, OPT's width). A
letter means one thing everywhere:

    I  paintings (images)                              A  answer tokens
    Q  questions                                       G  pieces: questions of one painting that share visual tokens
    N  image tokens of the ViT                         Z  cross-attention layers of the Q-Former
    P  prefix tokens                                   H  heads of an attention
    K  query tokens: the visual tokens of a painting   X  width of a head
    T  text tokens                                     V  width of the ViT
    S  positions of an unpacked sequence, K + T        W  width of the Q-Former
    R  rows of a packed batch                          D  width of OPT
    L  columns of a packed row                         F  width of the art features
    C  columns of it that are computed                 E  edge of a picture, pixels
    O  outputs of a classifier: vocabulary, styles     M  metrics, or what a score is compared with; art tokens
    B  bootstrap samples, or exchanges of signs        U  runs of different seeds
    1, 3  that many
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self


class _Movable:
    """Moves every tensor of a dataclass, nested records and tuples of records or tensors included."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._with_each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Page-locks every tensor, so that the copy to the device can overlap."""
        return self._with_each(lambda value: value.pin_memory())

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""
        sizes: list[int] = []

        def count(value: Any) -> Any:
            sizes.append(value.num_bytes if isinstance(value, _Movable) else value.nbytes)
            return value

        self._with_each(count)
        return sum(sizes)

    def _with_each(self, change: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, _Movable)):
                changed[field.name] = change(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], (Tensor, _Movable)):
                changed[field.name] = tuple(change(one) for one in value)
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class PaintingViews(_Movable):
    """The views that the frozen encoders get of each painting, from one decode.

    vit_pixels: (I, 3, E, E) float32, CLIP-normalised, E the ViT's image size.
    art_pixels: of each art encoder, in the config's order, (I, 3, E, E) float32, normalised as it wants, E its image
        size; empty where no prefix is made.
    """

    vit_pixels: Tensor
    art_pixels: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.vit_pixels.shape[0]

    def __getitem__(self, some: slice) -> Self:
        return replace(self, vit_pixels=self.vit_pixels[some], art_pixels=tuple(one[some] for one in self.art_pixels))


@dataclass(frozen=True)
class PaintingFeatures(_Movable):
    """What the frozen encoders say of each painting.

    image_features: (I, N, V), the ViT's tokens after its last LayerNorm.
    art_features: of each art encoder, in the config's order, (I, F) where it is pooled (F = 1536 for EfficientNet-B3),
        else (I, M, F), M its tokens; empty where no prefix is made of them.
    """

    image_features: Tensor
    art_features: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.image_features.shape[0]

    def __getitem__(self, some: slice) -> Self:
        art = tuple(one[some] for one in self.art_features)
        return replace(self, image_features=self.image_features[some], art_features=art)


@dataclass(frozen=True)
class QuestionBatch(_Movable):
    """Tokenised questions, with their answers when training; rows are padded on the right.

    input_ids: (Q, T) int64. For training: BOS, prompt, answer, newline; for generation: BOS, prompt.
    attention_mask: (Q, T) int64, 1 on real tokens, 0 on padding.
    labels: (Q, T) int64, the answer's and newline's ids at their places, -100 elsewhere.
    answer_places: (A,) int64, where `labels.flatten()` is not -100; known on the host, so that no step waits for it.
    painting_index: (Q,) int64, each question's row in the paintings of the batch.
    weight: (Q,) float32, 1 for a question that counts, 0 for a row that only fills a step up.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    answer_places: Tensor
    painting_index: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def answer_token_count(self) -> Tensor:
        """The number of answer tokens that count, shape (), float32: rows of weight 0 left out."""
        return ((self.labels != -100).sum(dim=1) * self.weight).sum()


@dataclass(frozen=True)
class PackedRows(_Movable):
    """Texts of which each common beginning is there once: see `artkv.datasets.packing`.

    A piece is `[visual tokens][text of some questions on one painting]`, its text a tree of token prefixes in
    depth-first order. A row holds pieces side by side and is padded on the right.

    token_ids: (R, L) int64, the text; any id at visual tokens and padding.
    position_ids: (R, L) int64, the position that the token has in its own question's unpacked sequence.
    subtree_end: (R, L) int64; column i of a row attends to column j where `j <= i < subtree_end[j]`.
    piece_places: (G,) int64, where each piece's visual tokens begin in the flattened (R, L).
    piece_painting: (G,) int64, each piece's row in the paintings of the batch.
    """

    token_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    piece_places: Tensor
    piece_painting: Tensor


@dataclass(frozen=True)
class PackedAnswers(PackedRows):
    """Texts with answers that are given, packed.

    answer_columns: (R, C) int64, the columns of each row that predict answer tokens, filled up with 0.
    answer_places: (A,) int64, where in the flattened (R, C) each answer token is predicted.
    answer_ids: (A,) int64, the answers' and newlines' ids.
    """

    answer_columns: Tensor
    answer_places: Tensor
    answer_ids: Tensor


@dataclass(frozen=True)
class PackedQuestions(PackedAnswers):
    """Training questions, packed.

    answer_weight: (A,) float32, the weight of the token's question: 1, or 0 for one that only fills a step up.
    """

    answer_weight: Tensor

    def answer_token_count(self) -> Tensor:
        """The number of answer tokens that count, shape (), float32."""
        return self.answer_weight.sum()


@dataclass(frozen=True)
class Batch(_Movable):
    """One micro-step's paintings and questions.

    questions: packed for training if `training.pack_questions`, else one row a question.
    rows: the questions' row numbers in their CSV table, in the order of a `QuestionBatch` (not a tensor:
    it names predictions and never reaches the device).
    """

    paintings: PaintingViews | PaintingFeatures
    questions: QuestionBatch | PackedQuestions
    rows: tuple[int, ...]


@dataclass(frozen=True)
class PackedPrompts(PackedRows):
    """Questions to be answered, packed; equal prompts on one painting are there once, since they have one answer.

    last_columns: (R, C) int64, where each prompt of a row ends, filled up with 0.
    is_asked: (R, C) bool, false where `last_columns` is filled up.
    places: (Q,) int64, where in the flattened (R, C) each question's prompt is.
    """

    last_columns: Tensor
    is_asked: Tensor
    places: Tensor

    def __len__(self) -> int:
        return self.places.shape[0]


@dataclass(frozen=True)
class PackedChoices(PackedAnswers):
    """Answers that a question may have, each of them after its prompt, packed.

    answer_owners: (A,) int64, the number of each token's answer among `num_answers`.
    """

    answer_owners: Tensor
    num_answers: int


@dataclass(frozen=True)
class AnsweringBatch(_Movable):
    """Questions that are answered at once, each once for every way in which its painting is shown.

    paintings: with what the art encoders see of each itself, or of another one where nothing else is to be shown;
        None where only the blank one is.
    other_art: what each of them sees of another painting, (I, 3, E, E), or its features of that; None where not needed.
    blank: one plain grey painting, or None.
    prompts: of all questions, one way after the other. `piece_painting` counts the paintings so too: I of each way,
        one of a blank way.
    choices: the answers that are to be scored, of all prompts one after the other, some at a time.
    rows: the questions' row numbers in their CSV table. num_choices: of each of them, how many there are.
    painting_index: of each prompt, the number of its painting among all that are shown.
    """

    paintings: PaintingViews | PaintingFeatures | None
    other_art: tuple[Tensor, ...] | None
    blank: PaintingViews | PaintingFeatures | None
    prompts: PackedPrompts
    choices: tuple[PackedChoices, ...]
    rows: tuple[int, ...]
    num_choices: tuple[int, ...]
    painting_index: tuple[int, ...]


@dataclass(frozen=True)
class EncoderIdentity:
    """What an encoder's features depend on beside the pictures, each part as text that is equal for equal parts.

    encoder: `vit`, or the architecture. dtype: of its features. weights: a hash. settings: what is not in the weights,
    as JSON, what is read of the encoder included. view: what it sees of a picture, as JSON.
    """

    encoder: str
    dtype: str
    weights: str
    settings: str
    view: str
