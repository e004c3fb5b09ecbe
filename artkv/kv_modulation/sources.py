"""What an art encoder gives of each painting. Letters are explained in `artkv.batch`."""

import re
from dataclasses import dataclass

# It becomes part of parameters' names, in which "." and "/" have a meaning.
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ArtSource:
    """An art encoder as an injection sees it.

    name: of letters, digits, `_` and `-`; names the parameters that read it. feature_dim: F.
    num_tokens: None for pooled features, (I, F); M for tokens, (I, M, F).
    """

    name: str
    feature_dim: int
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name of an art source = {self.name!r}: give one of letters, digits, _ and -")

    def prefix_tokens(self, num_prefix_tokens: int) -> int:
        """Tokens that are made of it: one of each token, or `num_prefix_tokens` of what is pooled."""
        return num_prefix_tokens if self.num_tokens is None else self.num_tokens
