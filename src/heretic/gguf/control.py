"""Control vectors: llama.cpp adds them to the outputs of layers while it runs a model.

The form is llama.cpp's: a GGUF file of the architecture `controlvector` with a float32 tensor
`direction.L` for each layer from 1 (`common_control_vector_load`). llama.cpp adds `direction.L` to
the output of layer L, counted from 0, so that the first layer cannot be steered.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.errors import HereticError
from heretic.system.files import cannot_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ARCHITECTURE = "controlvector"


def write_control_vector(path: Path, vectors: NDArray[np.float32], name: str) -> None:
    """Write vectors as a control vector.

    Args:
        vectors: float32 [layers + 1, hidden]; row l + 1 belongs to layer l. Rows 0 and 1, those of
            the embeddings and of the first layer, are left out.
        name: Of the model that the vectors belong to.

    Raises:
        HereticError: The file cannot be written.
    """
    from gguf import GGUFWriter

    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(unfinished, ARCHITECTURE)
        writer.add_name(name)
        writer.add_uint32("controlvector.layer_count", len(vectors) - 2)
        for layer, vector in enumerate(vectors[2:], start=1):
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def read_control_vector(path: Path) -> NDArray[np.float32]:
    """The vectors of a file, float32 [layers - 1, hidden]: those of layers 1, 2, ...

    Raises:
        HereticError: It is no control vector.
    """
    import numpy as np
    from gguf import GGUFReader

    try:
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    except (OSError, ValueError, IndexError) as error:
        raise _no_control_vector(path, str(error)) from error
    names = [f"direction.{layer}" for layer in range(1, len(tensors) + 1)]
    if not names or set(names) != set(tensors):
        raise _no_control_vector(path, f"its tensors are {', '.join(sorted(tensors)) or 'none'}")
    return np.stack([np.asarray(tensors[name], dtype=np.float32) for name in names])


def _no_control_vector(path: Path, reason: str) -> HereticError:
    return HereticError(
        f"{path} is no control vector: {reason}.", remedy="`heretic directions` writes one."
    )
