"""How the tables of questions are written: names of columns, delimiter, encoding."""

from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from artkv.config.section import Section

Delimiter = Literal["auto", "comma", "semicolon", "tab", "pipe"]
# Python knows more, some of which are no encodings of text; these are what spreadsheets and data sets come in.
Encoding = Literal[
    "utf-8", "utf-16", "latin-1", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "koi8-r", "mac-roman",
    "big5", "euc-jp", "euc-kr", "gb18030", "shift-jis",
]  # fmt: skip


class ColumnsConfig(Section):
    """The names that the columns have in the CSV files' headers."""

    image: str = Field(default="image", description="the header of the column that names the picture")
    question: str = Field(default="question", description="the header of the column with the question")
    answer: str = Field(default="answer", description="the header of the column with the answer")
    question_id: str | None = Field(
        default="question_id", description="the header of the column with an id for each row; null: none is read"
    )
    question_type: str | None = Field(
        default="question_type", description="the header of the column with the question's type; null: none is read"
    )

    @field_validator("*")
    @classmethod
    def _is_stripped(cls, name: str | None) -> str | None:
        if name is not None and name != name.strip():
            raise ValueError("begins or ends with a blank, which names in a header are read without")
        if name == "":
            raise ValueError("is empty")
        return name

    @model_validator(mode="after")
    def _are_different(self) -> Self:
        role_of: dict[str, str] = {}
        for role, name in self.names().items():
            if name in role_of:
                raise ValueError(f"{role} and {role_of[name]} are both {name!r}; give each a column of its own")
            role_of[name] = role
        return self

    def names(self) -> dict[str, str]:
        """The header's name of each column that is read, by what it is for."""
        return {role: name for role, name in self if name is not None}
