"""Control vectors: llama.cpp adds them to the outputs of layers while it runs a model.

The form is llama.cpp's: a GGUF file of the architecture `controlvector` with a float32 tensor
`direction.L` for each layer from 1 (`common_control_vector_load`). llama.cpp adds `direction.L` to
the output of layer L, counted from 0, so that the first layer cannot be steered.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.errors import HereticError, ModelError
from heretic.system.files import cannot_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from heretic.gguf.bindings import Bindings

    Floats = NDArray[np.float32]

ARCHITECTURE = "controlvector"


def write_control_vector(path: Path, vectors: Floats, name: str) -> None:
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


def read_control_vector(path: Path) -> Floats:
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


def checked(bound: Bindings, model: Any, vectors: Floats, path: Path) -> Floats:
    """A control vector for a model that llama.cpp has loaded, contiguous.

    Args:
        vectors: float32 [layers - 1, hidden]: those of layers 1, 2, ..., counted from 0.
        path: Of the model.

    Raises:
        ModelError: They do not fit the model.
    """
    import numpy as np

    wanted = bound.lib.llama_model_n_layer(model) - 1, bound.lib.llama_model_n_embd(model)
    if vectors.shape != wanted:
        raise ModelError(f"A control vector for {path} is {wanted}, not {vectors.shape}.")
    return np.ascontiguousarray(vectors, dtype=np.float32)


def add_control(bound: Bindings, context: Any, vectors: Floats) -> None:
    """Let llama.cpp add vectors in a context.

    Args:
        vectors: As `checked` gave them.

    Raises:
        ModelError: It does not take them.
    """
    layers, width = vectors.shape
    data = bound.ffi.cast("float *", bound.ffi.from_buffer(vectors))
    status = bound.lib.llama_set_adapter_cvec(context, data, vectors.size, width, 1, layers)
    if status:
        raise ModelError(f"llama.cpp does not take the control vector: status {status}.")


def _no_control_vector(path: Path, reason: str) -> HereticError:
    return HereticError(
        f"{path} is no control vector: {reason}.", remedy="`heretic directions` writes one."
    )
