"""A GGUF file loaded in llama.cpp: its tokens, logits and replies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from heretic.errors import ModelError
from heretic.gguf.bindings import bindings, errors_told, failed, not_loaded, threads
from heretic.gguf.control import add_control, checked

Floats = npt.NDArray[np.float32]
Tokens = Sequence[int]
Done = Callable[[int, list[int]], bool]
"""Called with the number of a row and its growing reply; True ends that reply."""

ROWS = 32
"""Sequences that are decoded together. More read the weights less often; but each token attends to
the memory of all of them, masked, which costs more the more there are."""

STEP_TOKENS = 512
"""Most tokens of one call of `llama_decode`."""


class LlamaFile:
    """A model in a GGUF file; a context manager, which frees the memory at its end.

    Attributes:
        path: The file.
        bound: The library that has loaded it.
    """

    def __init__(
        self, path: Path, adapter: Path | None = None, *, vocabulary_only: bool = False
    ) -> None:
        """Load the file.

        Args:
            adapter: A LoRA adapter as a GGUF file, which is then part of the model.
            vocabulary_only: Whether weights are left out, so that it gives tokens only.

        Raises:
            ModelError: llama.cpp cannot load it.
        """
        self.bound = bindings()
        ffi, lib = self.bound.ffi, self.bound.lib
        self.path = path
        self._adapter: Any = None
        self._control: Floats | None = None
        with errors_told() as told:
            parameters = lib.llama_model_default_params()
            parameters.vocab_only = vocabulary_only
            self._model = lib.llama_model_load_from_file(os.fsencode(path), parameters)
            if self._model == ffi.NULL:
                raise not_loaded(path, told)
            if adapter is not None:
                self._adapter = lib.llama_adapter_lora_init(self._model, os.fsencode(adapter))
                if self._adapter == ffi.NULL:
                    self.close()
                    raise not_loaded(adapter, told)
        self._vocabulary = lib.llama_model_get_vocab(self._model)

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free its memory."""
        self.close()

    def close(self) -> None:
        """Free its memory; it cannot be used afterwards."""
        if self._model is not None:
            self.bound.lib.llama_model_free(self._model)  # with its adapters
            self._model = None

    # --- what it says of itself ------------------------------------------------------------

    def steer(self, vectors: Floats) -> None:
        """Add a control vector from now on; see `checked` for its form and errors."""
        self._control = checked(self.bound, self._model, vectors, self.path)

    @property
    def vocabulary_size(self) -> int:
        """Number of its tokens."""
        return int(self.bound.lib.llama_vocab_n_tokens(self._vocabulary))

    @property
    def trained_context(self) -> int:
        """Number of positions that the model was trained with."""
        return int(self.bound.lib.llama_model_n_ctx_train(self._model))

    @property
    def chat_template(self) -> str | None:
        """Its chat template (Jinja); None if it has none."""
        ffi, lib = self.bound.ffi, self.bound.lib
        found = lib.llama_model_chat_template(self._model, ffi.NULL)
        return None if found == ffi.NULL else ffi.string(found).decode(errors="replace")

    def metadata(self, key: str) -> str | None:
        """A value of its metadata as text, such as `general.architecture`; None if it has none."""
        ffi, lib = self.bound.ffi, self.bound.lib
        size = lib.llama_model_meta_val_str(self._model, key.encode(), ffi.NULL, 0)
        if size < 0:
            return None
        buffer = ffi.new("char[]", size + 1)
        lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return str(ffi.string(buffer).decode(errors="replace"))

    # --- tokens ----------------------------------------------------------------------------

    def special(self, kind: Literal["bos", "eos"]) -> str:
        """Text of the token that begins or ends texts; empty if there is none."""
        lib, vocabulary = self.bound.lib, self._vocabulary
        token = (
            lib.llama_vocab_bos(vocabulary) if kind == "bos" else lib.llama_vocab_eos(vocabulary)
        )
        return "" if token < 0 else self.text([token], special=True)

    @property
    def added_start(self) -> str:
        """Text of the token that llama.cpp puts at the beginning of a prompt; empty if none."""
        adds = self.bound.lib.llama_vocab_get_add_bos(self._vocabulary)
        return self.special("bos") if adds else ""

    def tokens(self, text: str) -> list[int]:
        """llama.cpp's tokens of a rendered prompt, as its programs make them.

        A BOS that the template wrote is not put there twice, as in llama.cpp's own chat.
        """
        lib, vocabulary = self.bound.lib, self._vocabulary
        found = self._tokens(text, special=True)
        start = lib.llama_vocab_bos(vocabulary)
        if lib.llama_vocab_get_add_bos(vocabulary) and found[:2] == [start, start]:
            return found[1:]
        return found

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        ffi, lib = self.bound.ffi, self.bound.lib
        data = text.encode()
        room = len(data) + 16
        buffer = ffi.new("llama_token[]", room)
        count = lib.llama_tokenize(self._vocabulary, data, len(data), buffer, room, special, True)
        if count < 0:
            raise ModelError(f"llama.cpp makes more than {room} tokens of a text in {self.path}.")
        return list(ffi.unpack(buffer, count)) if count else []

    def text(self, ids: Tokens, *, special: bool = False) -> str:
        """The text of tokens.

        Args:
            special: Whether special tokens are written.
        """
        ffi, lib = self.bound.ffi, self.bound.lib
        row = ffi.new("llama_token[]", list(ids))
        room = 16 * len(ids) + 64
        while True:
            buffer = ffi.new("char[]", room)
            count = lib.llama_detokenize(
                self._vocabulary, row, len(ids), buffer, room, False, special
            )
            if count >= 0:
                return bytes(ffi.buffer(buffer, count)).decode(errors="replace")
            room = -count + 1

    def ends(self, token: int) -> bool:
        """Whether a reply ends with this token in llama.cpp."""
        return bool(self.bound.lib.llama_vocab_is_eog(self._vocabulary, token))

    # --- running ---------------------------------------------------------------------------

    def logits(self, rows: Sequence[Tokens], on_row: Callable[[int], None] | None = None) -> Floats:
        """Raw logits after each row of token ids, float32 [rows, vocabulary].

        Args:
            on_row: Called with the number of rows that are done.

        Raises:
            ModelError: llama.cpp fails.
        """
        found = np.empty((len(rows), self.vocabulary_size), np.float32)
        done = 0

        def take(row: int, logits: Floats) -> int | None:
            nonlocal done
            found[row] = logits
            done += 1
            if on_row is not None:
                on_row(done)
            return None

        self._run(rows, 0, take)
        return found

    def replies(
        self, rows: Sequence[Tokens], most: int, done: Done | None = None
    ) -> list[list[int]]:
        """Greedy replies to rows of token ids, without the end token.

        Args:
            most: Most new tokens of a reply.

        Raises:
            ModelError: llama.cpp fails.
        """
        found: list[list[int]] = [[] for _ in rows]

        def take(row: int, logits: Floats) -> int | None:
            token, reply = int(logits.argmax()), found[row]
            if self.ends(token):
                return None
            reply.append(token)
            if len(reply) == most or (done is not None and done(row, reply)):
                return None
            return token

        self._run(rows, most, take)
        return found

    def stream(
        self, row: Tokens, most: int, choose: Callable[[Floats], int] | None = None
    ) -> Iterator[int]:
        """The tokens of a reply one by one, without the end token.

        Args:
            most: Most new tokens.
            choose: Picks a token by the raw logits, float32 [vocabulary]; the likeliest by default.

        Raises:
            ModelError: llama.cpp fails.
        """
        with self._context(1, len(row) + most) as context:
            batch = _Batch(self.bound, context, self.path)
            fresh, position = list(row), 0
            for _ in range(most):
                for start in range(0, len(fresh), STEP_TOKENS):
                    part = fresh[start : start + STEP_TOKENS]
                    for offset, token in enumerate(part):
                        last = start + offset == len(fresh) - 1
                        batch.add(token, position, [0], wanted=last)
                        position += 1
                    logits = batch.decode(self.vocabulary_size)
                chosen = int(logits[-1].argmax()) if choose is None else choose(logits[-1])
                if self.ends(chosen):
                    return
                yield chosen
                fresh = [chosen]

    def _run(
        self, rows: Sequence[Tokens], most: int, take: Callable[[int, Floats], int | None]
    ) -> None:
        """Decode rows, `ROWS` at a time; a row that is done makes place for the next one.

        Args:
            most: Most tokens that follow a row.
            take: Called with a row's number and the logits after its last token; returns the token
                that follows, or None if the row is done.
        """
        if not rows:
            return
        places = min(ROWS, len(rows))
        shared = self._shared(rows)
        longest = max(map(len, rows)) + most
        cells = len(shared) + places * (longest - len(shared))
        with self._context(places + 1, cells) as context:
            _Decoding(self, context, rows, shared, places).run(take)

    def _shared(self, rows: Sequence[Tokens]) -> Tokens:
        """The tokens that all rows begin with, less one; none where states cannot be shared."""
        lib = self.bound.lib
        if len(rows) < 2 or lib.llama_model_is_recurrent(self._model):
            return []
        if lib.llama_model_is_hybrid(self._model):
            return []
        first, last = min(map(list, rows)), max(map(list, rows))  # all others lie between them
        most = min(map(len, rows)) - 1
        pairs = enumerate(zip(first, last, strict=False))
        return first[: min(most, next((at for at, (a, b) in pairs if a != b), most))]

    @contextmanager
    def _context(self, sequences: int, cells: int) -> Iterator[Any]:
        """Memory for some sequences that have so many tokens in all.

        Raises:
            ModelError: There is not enough memory.
        """
        ffi, lib = self.bound.ffi, self.bound.lib
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_batch = parameters.n_ubatch = STEP_TOKENS
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        parameters.no_perf = True
        parameters.n_threads = parameters.n_threads_batch = threads()
        with errors_told() as told:
            context = lib.llama_init_from_model(self._model, parameters)
            if context == ffi.NULL:
                raise failed(self.path, told)
        try:
            if self._adapter is not None:
                one = ffi.new("struct llama_adapter_lora *[]", [self._adapter])
                scales = ffi.new("float[]", [1.0])
                lib.llama_set_adapters_lora(context, one, 1, scales)
            if self._control is not None:
                add_control(self.bound, context, self._control)
            yield context
        finally:
            lib.llama_free(context)


class _Batch:
    """Tokens that are decoded in one step."""

    def __init__(self, bound: Any, context: Any, path: Path) -> None:
        self._ffi, self._lib, self._context, self._path = bound.ffi, bound.lib, context, path
        self._tokens: list[tuple[int, int, list[int], bool]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int, position: int, sequences: list[int], *, wanted: bool) -> None:
        """Add a token; `wanted` says whether its logits are."""
        self._tokens.append((token, position, sequences, wanted))

    def decode(self, vocabulary: int) -> Floats:
        """Run the tokens and forget them.

        Returns:
            Copies of the logits of the tokens that want them, float32 [wanted, vocabulary].
        """
        ffi, lib, tokens = self._ffi, self._lib, self._tokens
        self._tokens = []
        batch = lib.llama_batch_init(len(tokens), 0, max(len(s) for _, _, s, _ in tokens))
        try:
            for index, (token, position, sequences, wanted) in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index] = len(sequences)
                for place, sequence in enumerate(sequences):
                    batch.seq_id[index][place] = sequence
                batch.logits[index] = wanted
            batch.n_tokens = len(tokens)
            with errors_told() as told:
                status = lib.llama_decode(self._context, batch)
                if status != 0:
                    raise failed(self._path, told or [f"llama_decode returned {status}"])
        finally:
            lib.llama_batch_free(batch)
        rows = [index for index, token in enumerate(tokens) if token[3]]
        found = np.empty((len(rows), vocabulary), np.float32)
        for place, index in enumerate(rows):
            raw = lib.llama_get_logits_ith(self._context, index)
            found[place] = np.frombuffer(ffi.buffer(raw, 4 * vocabulary), np.float32)
        return found


class _Decoding:
    """Rows on their way through a context: sequence 0 is what they share, each has one more."""

    def __init__(
        self,
        file: LlamaFile,
        context: Any,
        rows: Sequence[Tokens],
        shared: Tokens,
        places: int,
    ) -> None:
        self._lib = file.bound.lib
        self._memory = self._lib.llama_get_memory(context)
        self._batch = _Batch(file.bound, context, file.path)
        self._vocabulary = file.vocabulary_size
        self._rows, self._shared = rows, shared
        self._free = list(range(1, places + 1))
        self._waiting = list(range(len(rows)))[::-1]
        self._live: dict[int, tuple[int, int]] = {}  # by row: its sequence, its next position

    def run(self, take: Callable[[int, Floats], int | None]) -> None:
        """Decode until `take` has called every row done."""
        if self._shared:
            for start in range(0, len(self._shared), STEP_TOKENS):
                part = self._shared[start : start + STEP_TOKENS]
                for offset, token in enumerate(part):
                    self._batch.add(token, start + offset, [0], wanted=False)
                self._batch.decode(self._vocabulary)
        following: dict[int, int] = {}
        while following or self._waiting:
            wanting = self._continued(following)
            self._admit(wanting)
            logits = self._batch.decode(self._vocabulary)
            following = {}
            for row, found in zip(wanting, logits, strict=True):
                chosen = take(row, found)
                if chosen is None:
                    self._release(row)
                else:
                    following[row] = chosen

    def _continued(self, following: Mapping[int, int]) -> list[int]:
        """Add the next token of each row; returns the rows, in the batch's order."""
        for row, token in following.items():
            sequence, position = self._live[row]
            self._batch.add(token, position, [sequence], wanted=True)
            self._live[row] = sequence, position + 1
        return list(following)

    def _admit(self, wanting: list[int]) -> None:
        """Add waiting rows while there is place for them, and name them among those that want."""
        start = len(self._shared)
        while self._waiting and self._free:
            row = self._waiting[-1]
            own = self._rows[row][start:]
            if len(self._batch) and len(self._batch) + len(own) > STEP_TOKENS:
                return
            self._waiting.pop()
            sequence = self._free.pop()
            if start:
                self._lib.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
            for offset, token in enumerate(own):
                if len(self._batch) == STEP_TOKENS:  # only a row that is longer than a step
                    self._batch.decode(self._vocabulary)
                last = offset == len(own) - 1
                self._batch.add(token, start + offset, [sequence], wanted=last)
            wanting.append(row)
            self._live[row] = sequence, start + len(own)

    def _release(self, row: int) -> None:
        sequence, _ = self._live.pop(row)
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._free.append(sequence)
