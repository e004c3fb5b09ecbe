"""What the sections of a config are made of."""

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

# Strict: `true`, "3" and 2.0 are no whole numbers, and `true` is no number; YAML has said what it means.
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Float = Annotated[float, Field(strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, strict=True)]
Bool = Annotated[bool, Field(strict=True)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def is_section(kind: Any) -> bool:
    """Whether a type is that of a section."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def entry_of(kind: Any) -> type[BaseModel] | None:
    """The section of which a setting of this type may be a list."""
    for one in (kind, *get_args(kind)):
        if get_origin(one) is tuple and is_section(get_args(one)[0]):
            entry: type[BaseModel] = get_args(one)[0]
            return entry
    return None
