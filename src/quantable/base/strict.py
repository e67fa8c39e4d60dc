"""The pydantic model that every file of this project is read through."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Knows its keys: any other is an error; nothing of it changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
