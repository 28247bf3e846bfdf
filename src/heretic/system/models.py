"""Whether there is a model of a name: told at once, before anything that takes seconds to import.

Loading looks further; see `heretic.model.files`. What both say is written here.
"""

from __future__ import annotations

from pathlib import Path

from heretic.errors import ModelError
from heretic.system.files import expanded
from heretic.system.headers import disguise
from heretic.system.hub import GGUF_MAGIC, ask_for, gguf_parts, is_local

CONFIGS = ("config.json", "adapter_config.json")
"""The file that a model must have, and that an adapter must have."""

FORMS = "Give a Hub id, a GGUF file, or a folder that holds config.json, weights and a tokenizer."


def check_model_named(name: str, revision: str | None = None) -> None:
    """Refuse the name of a model that is not there.

    The Hub is asked about a name of its own that is not in the cache, if it may be.

    Raises:
        ModelError: There is no such folder or file, or it holds no model; the Hub has no such
            model, does not give it, or cannot be reached.
    """
    if not name:
        return
    if is_local(name):
        if gguf_parts(name) is not None:
            check_gguf(expanded(name))
        else:
            model_folder(name)
        return
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        if not _is_cached(name, revision):
            ask_for(name, revision)
    except HFValidationError as error:
        raise ModelError(
            f"There is no folder {name}, and nothing on the Hub can have that name.",
            remedy="Check the path, or give a Hub id (org/model).",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        told = of_the_hub(name, error)
        if told is not None:  # anything else is told by what loads the model
            raise told from error


def model_folder(name: str) -> Path:
    """The folder of a model or an adapter on this machine.

    Raises:
        ModelError: There is no such folder, or it holds neither.
    """
    folder = expanded(name)
    if not folder.is_dir():
        raise _no_folder(name)
    if not any((folder / file).is_file() for file in CONFIGS):
        raise _no_model(name, folder)
    return folder


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file that is not there, or is something else.

    Raises:
        ModelError: It is not there, cannot be read, or is no GGUF file.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}.", remedy="Check the path.")
    check_file(path)
    with path.open("rb") as reader:
        if reader.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ModelError(f"{path} is not a GGUF file.", remedy="Download it again.")


def check_file(path: Path) -> None:
    """Refuse a file that is empty, a pointer of git-lfs, or a web page.

    Raises:
        ModelError: It is one of these, or cannot be read.
    """
    try:
        found = disguise(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    if found is not None:
        what, remedy = found
        raise ModelError(f"{path} {what}.", remedy=remedy)


def of_the_hub(name: str, error: BaseException) -> ModelError | None:
    """What the Hub says about a model, in one line; None if the error says something else."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{name} is gated.",
            remedy="Accept its terms on its page on the Hub and run `hf auth login`.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"There is no model {name} on the Hub, or it is private.",
            remedy="Check the name; for a private model run `hf auth login`.",
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return ModelError(
            f"{name} is not on this machine and the Hub cannot be reached.",
            remedy="Check the connection, unset HF_HUB_OFFLINE, or give a local folder.",
        )
    return None


def _is_cached(name: str, revision: str | None) -> bool:
    """Whether the Hub's cache has a model's first file.

    Raises:
        HFValidationError: The Hub can have no such name.
        LocalEntryNotFoundError: It has not, and the Hub may not be asked.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, file = gguf_parts(name) or (name, "")
    for wanted in (file,) if file else CONFIGS:
        if isinstance(try_to_load_from_cache(repository, wanted, revision=revision), str):
            return True
    if constants.HF_HUB_OFFLINE:
        raise LocalEntryNotFoundError(f"{name} is not in the cache.")
    return False


def _no_folder(name: str) -> ModelError:
    path = expanded(name)
    if path.exists():
        return ModelError(f"{path} is a file, and not a GGUF file.", remedy=FORMS)
    return ModelError(
        f"There is no folder {name}.", remedy="Check the path, or give a Hub id (org/model)."
    )


def _no_model(name: str, folder: Path) -> ModelError:
    """The error for a folder without a model, with what stands there instead."""
    packed = sorted(path.name for path in folder.glob("*.gguf"))
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if packed:
        remedy = f"It holds GGUF files: name one, such as {folder / packed[0]}."
    elif inner:
        remedy = f"A folder in it does: {folder / inner[-1]}."
    else:
        remedy = "Give a Hub id, or a folder that holds config.json, weights and a tokenizer."
    if not name.startswith((".", "~", "/", "\\")):  # it could be a Hub id as well
        return ModelError(
            f"{name} is a folder here that holds no model (no config.json); a model of that name "
            "on the Hub is hidden by it.",
            remedy=f"Rename the folder or work elsewhere to load it from the Hub. {remedy}",
        )
    return ModelError(f"The folder {name} holds no model (no config.json).", remedy=remedy)
