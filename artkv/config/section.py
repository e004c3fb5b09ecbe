"""What the sections of a config are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Strict: `true`, "3" and 2.0 are no whole numbers, and `true` is no number; YAML has said what it means.
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
Bool = Annotated[bool, Field(strict=True)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
