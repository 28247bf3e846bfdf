"""A server with an OpenAI-compatible API: its address, its model's name, where its key is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from heretic.errors import HereticError, ScorerError
from heretic.system.secrets import (
    Secret,
    masked_address,
    masked_options,
    register,
    register_options,
)

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

LONGEST_NAME = 40
"""Characters of a name of a variable; what is longer may be a key in its place."""


class Endpoint(BaseModel):
    """What is needed to send requests to a server.

    Attributes:
        failure: The class of errors.
        key_option: How the user names the variable that holds the key.
    """

    model_config = ConfigDict(
        allow_inf_nan=False,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    failure: ClassVar[type[HereticError]] = ScorerError
    key_option: ClassVar[str] = "api_key_env"

    endpoint: str = Field(description="Base URL, which usually ends in /v1.")
    model: str = Field(min_length=1, description="The model's name at that endpoint.")
    api_key_env: str = Field(
        default="",
        description="Environment variable with the API key; empty if none is needed.",
    )
    timeout: float = Field(default=60.0, gt=0.0, description="Seconds to wait for an answer.")
    max_retries: int = Field(default=5, ge=0, description="Retries of a failed request.")

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an http or https address")
        if parts.username or parts.password:
            raise ValueError(
                f"must not contain a user or password; name a variable in {cls.key_option}"
            )
        if parts.port == 0 or not endpoint.isprintable() or " " in endpoint or parts.fragment:
            raise ValueError("must be an http or https address without spaces or a fragment")
        return urlunsplit(parts._replace(path=parts.path.rstrip("/")))

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str) -> str:
        if name and not _VARIABLE.fullmatch(name):
            raise ValueError("must be the name of an environment variable, never the key itself")
        return name

    @model_validator(mode="before")
    @classmethod
    def _secrets_are_known(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            register_options(data)
        return data

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What `repr` shows: everything but secrets."""
        shown = masked_options({str(name): value for name, value in super().__repr_args__()})
        yield from shown.items()

    @property
    def shown_endpoint(self) -> str:
        """The endpoint without what may be secret in it, for messages."""
        return masked_address(self.endpoint)

    def base_and_query(self) -> tuple[str, dict[str, str]]:
        """The endpoint without its query; and the query, which every request gets."""
        parts = urlsplit(self.endpoint)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return urlunsplit(parts._replace(query="")), query

    def api_key(self, environment: Mapping[str, str] = os.environ) -> Secret | None:
        """The API key; None if none is needed.

        Raises:
            HereticError: Of the class `failure`: the variable is not set, or its value cannot be
                sent as a key.
        """
        if not self.api_key_env:
            return None
        key = environment.get(self.api_key_env, "").strip()
        if not key:
            raise self.failure(
                f"The environment variable {self._shown_variable()} with the key for "
                f"{self.shown_endpoint} is not set.",
                remedy=f"Set it, or leave {self.key_option} out if no key is needed.",
            )
        secret = Secret(key)
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise self.failure(
                f"The key in the environment variable {self.api_key_env} holds a space, a line "
                "break or a character outside ASCII, which no request can carry.",
                remedy="Copy it again, without quotes and line breaks.",
            )
        return secret

    def _shown_variable(self) -> str:
        """The variable's name, unless it looks like the key itself."""
        name = self.api_key_env
        if len(name) < LONGEST_NAME and not re.search(r"\d\w*\d\w*\d|^(sk|hf|gh[pous])_", name):
            return name
        register(name)
        return f"that {self.key_option} names (it must be a name, never the key itself)"
