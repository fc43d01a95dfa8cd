"""The fields of a request, as OpenAI names them, and those of ours; read by pydantic, which refuses all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from var_toolkit.serving.limits import LONGEST_NAME, LONGEST_PROMPT, MOST_IMAGES

Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]


class Generation(BaseModel):
    """A request for images. A field that is null is as one that is not given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name | None = Field(None, description="one of /v1/models; by default the first")
    prompt: Prompt = Field("", description="what the images show; of a model of classes, a class by name or number")
    n: int = Field(1, ge=1, le=MOST_IMAGES, description="number of images")
    size: str = Field("auto", pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$", description="width x height")
    response_format: str = Field("b64_json", description="b64_json alone: the images are in the answer")
    output_format: Literal["png", "jpeg", "webp"] = "png"
    stream: bool = Field(False, description="server-sent events: previews, then the image; of one image")
    partial_images: int | None = Field(None, ge=0, le=64, description="previews of a stream; by default one a scale")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="of the first image; the next ones count up")
    class_: int | Name | None = Field(None, alias="class", description="of a model of classes, instead of prompt")
    negative_prompt: Prompt | None = Field(None, description="of a model of text: what guidance leads away from")
    plan: Name | dict[str, Any] | None = Field(None, description="one of /v1/plans by name, or a plan in JSON")
    settings: dict[str, Any] = Field({}, description="sampling settings, such as cfg and top_k")
    # What clients of OpenAI send, and what changes nothing here.
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    user: Name = ""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, Mapping) else fields

    @field_validator("response_format")
    @classmethod
    def _in_the_answer(cls, value: str) -> str:
        if value != "b64_json":
            raise ValueError("it must be b64_json, since no image is stored behind an address; leave it out")
        return value

    @model_validator(mode="after")
    def _fit(self) -> Generation:
        if self.stream and self.n > 1:
            raise ValueError("a stream shows one image; give n 1, or stream false")
        if self.partial_images is not None and not self.stream:
            raise ValueError("partial_images are those of a stream; give stream true")
        return self

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height; None for the model's own."""
        if self.size == "auto":
            return None
        width, _, height = self.size.partition("x")
        return int(width), int(height)


class Edit(Generation):
    """A request to redraw a part of an image; the files are read apart from these fields."""

    keep_pixels: bool = Field(False, description="paste what is drawn into the image, which keeps all other pixels")


TEXTS = ("model", "prompt", "size", "response_format", "output_format", "negative_prompt", "quality", "background",
         "moderation", "user")  # fmt: skip


def edit_of(form: Mapping[str, str]) -> Edit:
    """The fields of a form, in which all but texts are JSON. ValidationError of pydantic if they do not fit."""
    return Edit.model_validate({name: value if name in TEXTS else _json(value) for name, value in form.items()})


def _json(text: str) -> Any:
    """A value in JSON; other text, such as the name of a class or a plan, as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
