"""What the Hub says about a model reaches the user with its remedy, however it is wrapped."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from heretic.errors import ModelError
from heretic.model.failures import model_errors


def made(kind: type[OSError]) -> OSError:
    """An error of that kind, without the response that some of them come with."""
    error = kind.__new__(kind)
    OSError.__init__(error, "no")
    return error


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "by transformers"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (made(GatedRepoError), "org/m is gated. Accept its terms"),
        (made(RepositoryNotFoundError), "There is no model org/m on the Hub"),
        (LocalEntryNotFoundError("no"), "the Hub cannot be reached. Check the connection"),
        (OfflineModeIsEnabled("no"), "the Hub cannot be reached. Check the connection"),
    ],
    ids=["gated", "missing", "no answer", "offline"],
)
def test_the_remedy_is_reached(error: OSError, told: str, wrapped: bool) -> None:
    def load() -> None:
        if not wrapped:
            raise error
        try:
            raise error
        except OSError as cause:
            raise OSError("You are trying to access a gated repo.\nMake sure to ...") from cause

    with pytest.raises(ModelError) as caught, model_errors("org/m"):
        load()
    assert told in str(caught.value)


def test_the_hub_is_not_blamed_for_a_folder(tmp_path: Path) -> None:
    name = str(tmp_path)
    with pytest.raises(ModelError, match="could not be loaded"), model_errors(name):
        raise OSError("no config.json") from LocalEntryNotFoundError("no")
