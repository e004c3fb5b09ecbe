"""The settings of the questions and the pictures that they are about."""

from pathlib import Path
from typing import get_args

from pydantic import Field, field_validator

from artkv.config.said_as_text import one_question
from artkv.config.section import PositiveInt, Section
from artkv.config.table_settings import ColumnsConfig, Delimiter, Encoding

# The fields of `DatasetConfig` that name tables.
SPLITS = ("train", "val", "test")


class DatasetConfig(Section):
    """ArtQuest-style CSV files and the pictures they name."""

    train: Path | None = Field(default=None, description="a CSV file with columns image, question, answer")
    val: Path | None = Field(default=None, description="a CSV file with columns image, question, answer")
    test: Path | None = Field(default=None, description="a CSV file with columns image, question, answer")
    columns: ColumnsConfig = ColumnsConfig()
    delimiter: Delimiter = Field(
        default="auto",
        description="auto (of each CSV file, the one that its header has the columns with), comma, semicolon, tab or "
        "pipe",
    )
    encoding: Encoding = Field(default="utf-8", description=f"one of {', '.join(get_args(Encoding))}")
    limit: PositiveInt | None = Field(
        default=None, description="for a try-out: the first paintings of each CSV file, 1 or more; null: all"
    )
    image_root: Path | None = Field(
        default=None, description="folder of the pictures, sub-folders included, or of tar files; or x/{000..099}.tar"
    )
    max_pixels: PositiveInt = Field(
        default=300_000_000, description="most pixels of a picture, which take 16 bytes each while it is decoded"
    )
    prompt: str = Field(
        default="Question: {question} Short answer:", description="a text that contains {question} once"
    )
    workers: PositiveInt = Field(
        default=2,
        le=1024,
        description="threads a rank that prepare batches, of 1 to 1024: decode pictures, or read a feature cache; "
        "while one is filled, the rank's share of the cores if that is more",
    )

    _has_question = field_validator("prompt")(one_question)
