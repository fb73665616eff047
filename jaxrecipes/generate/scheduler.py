"""One call of the engine: who has which slot, how long the cache is, which texts have ended."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxrecipes.generate.cache import empty_caches, insert, rearrange
from jaxrecipes.generate.queue import Waiting, waiting_line
from jaxrecipes.generate.reader import Read, Reader
from jaxrecipes.generate.sampling import GREEDY, SamplingRows, sampling_rows
from jaxrecipes.generate.slots import Slots, write_tokens
from jaxrecipes.generate.stop import Decode, first_stop, tokens_to_stop
from jaxrecipes.generate.tokens import TokenPrompt, Written
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.sharding.host import to_host

Tree = dict[str, Any]
OnWritten = Callable[[int, Written], None]

_STEPS = 32  # of one dispatch
_STEPS_TO_STOP_TEXT = 8  # the device does not know stop texts: looked for so often
_FEWEST_COLUMNS = 64
# When so few tokens are left to write, fewer slots do not pay for another compilation.
_WORTH_FEWER_SLOTS = 16


class _Slot:
    """A text that is being written."""

    def __init__(self, waiting: Waiting, prompt_logprobs: np.ndarray | None) -> None:
        self.index, self.prompt = waiting.index, waiting.prompt
        self.prompt_logprobs = None
        if self.prompt.prompt_logprobs:
            nothing = np.zeros(0, np.float32)
            self.prompt_logprobs = nothing if prompt_logprobs is None else prompt_logprobs
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the latest one."""
        return len(self.prompt.context) + len(self.tokens)

    @property
    def left(self) -> int:
        """Most tokens that are still written."""
        return self.prompt.max_new_tokens - len(self.tokens)

    @property
    def latest(self) -> int:
        return self.tokens[-1] if self.tokens else self.prompt.token_ids[-1]


class Run:
    """One call of the engine.

    Attributes:
        done: Texts that have ended.
        tokens: Tokens that were written.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Tree,
        dtype: Any,
        decode: Decode | None,
        prompts: Sequence[TokenPrompt],
        size: int,
        on_written: OnWritten,
    ) -> None:
        """Puts the prompts in line and makes an empty cache.

        Args:
            config: The model.
            params: As for `Engine`.
            dtype: dtype of activations, products and cache.
            decode: Token ids to text, or None.
            prompts: At least one; what they ask for was checked.
            size: Slots at the start.
            on_written: Called with a prompt's index and its text as soon as it has ended.
        """
        self._config, self._params, self._dtype = config, params, dtype
        self._decode, self._on_written = decode, on_written
        self._queue = deque(waiting_line(prompts))
        self._slots: list[_Slot | None] = [None] * size
        self._reader = Reader(config, params, dtype)
        self._held: Read | None = None  # texts whose prompts have not all got a slot
        # So many slots are filled together. More would keep free ones waiting for each other.
        self._together = max(1, size // 8)
        self._mesh = _mesh_of(params)
        self._longest = max(prompt.longest for prompt in prompts)
        self._columns = _FEWEST_COLUMNS
        self._caches = empty_caches(config, size, self._columns, dtype, self._mesh)
        self._offset = 0
        self._most_stops = max(1, *(len(prompt.stop_ids) for prompt in prompts))
        penalty = any(prompt.sampling.repetition_penalty != 1 for prompt in prompts)
        self._seen = jnp.zeros((size, config.vocab_size), bool) if penalty else None
        self.done, self.tokens = 0, 0

    @property
    def unfinished(self) -> bool:
        """Whether there is anything left to write."""
        return bool(self._queue) or any(slot is not None for slot in self._slots)

    @property
    def _active(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot is not None]

    def fill(self) -> None:
        """Gives free slots to waiting prompts; without any, uses fewer slots."""
        while self._queue and None in self._slots:
            chosen, read = self._read_next(self._slots.count(None))
            free = [number for number, slot in enumerate(self._slots) if slot is None]
            for number, waiting in zip(free, chosen, strict=False):
                self._slots[number] = _Slot(waiting, None if read is None else read.logprobs)
            self._resize()
            if read is not None:
                self._insert(read, chosen, free[: len(chosen)])
            if self._seen is not None:
                texts = np.zeros((len(chosen), self._config.vocab_size), bool)
                for row, waiting in enumerate(chosen):
                    texts[row, list(waiting.prompt.token_ids)] = True
                self._seen = self._seen.at[np.asarray(free[: len(chosen)])].set(texts)
        size = len(self._slots)
        while self._leaves_slots(size) and len(self._active) <= size // 4:
            size //= 4
        if size < len(self._slots):
            kept = [number for number, slot in enumerate(self._slots) if slot is not None]
            self._rearrange(kept + [0] * (size - len(kept)), self._columns)
            self._slots = [self._slots[number] for number in kept] + [None] * (size - len(kept))

    def _leaves_slots(self, size: int) -> bool:
        left = max((slot.left for slot in self._active), default=0)
        return not self._queue and size >= 4 and left >= _WORTH_FEWER_SLOTS

    def _read_next(self, free: int) -> tuple[list[Waiting], Read | None]:
        """Takes prompts from the queue, and reads them if they were not read yet."""
        first = self._queue[0]
        context = first.prompt.context
        if self._held is not None and context not in self._held.rows:
            self._held = None
        if not context:  # one token: nothing to read
            return [self._queue.popleft()], None
        if self._held is None:
            if first.prompt.prompt_logprobs:
                self._held = self._reader.read_scored(first.prompt)
                return [self._queue.popleft()], self._drop_held()
            rows = self._reader.rows(len(context) - first.prefix, self._together)
            contexts: list[tuple[int, ...]] = []
            for waiting in itertools.islice(self._queue, free):
                if not self._is_read_with(first, waiting, rows) or len(contexts) == rows:
                    break
                if waiting.prompt.context not in contexts:
                    contexts.append(waiting.prompt.context)
            self._held = self._reader.read(contexts, first.prefix, rows)
        chosen: list[Waiting] = []
        while self._queue and len(chosen) < min(free, self._together):
            waiting = self._queue[0]
            if waiting.prompt.context not in self._held.rows or waiting.prompt.prompt_logprobs:
                break
            chosen.append(self._queue.popleft())
        return chosen, self._drop_held()

    def _is_read_with(self, first: Waiting, other: Waiting, rows: int) -> bool:
        """Tells whether a prompt can be read beside the first one, in so many rows."""
        context, prefix = other.prompt.context, first.prefix
        return (
            bool(context)
            and not other.prompt.prompt_logprobs
            and other.prefix == prefix
            and context[:prefix] == first.prompt.context[:prefix]
            and self._reader.rows(len(context) - prefix, self._together) >= rows
        )

    def _drop_held(self) -> Read:
        """Returns what was read, and forgets it unless the next prompt needs it, too."""
        read = self._held
        assert read is not None
        more = self._queue[0].prompt if self._queue else None
        if more is None or more.context not in read.rows or more.prompt_logprobs:
            self._held = None
        return read

    def _insert(self, read: Read, chosen: Sequence[Waiting], free: Sequence[int]) -> None:
        sources, targets, lengths = np.zeros((3, self._together), np.int32)
        for place, (waiting, number) in enumerate(zip(chosen, free, strict=True)):
            context = waiting.prompt.context
            sources[place], targets[place] = read.rows[context], number
            lengths[place] = len(context)
        self._caches = insert(
            self._caches,
            read.caches,
            sources,
            targets,
            lengths,
            np.int32(len(chosen)),
            np.int32(self._offset),
        )

    def _steps(self) -> int:
        waits = any(slot.prompt.stop for slot in self._active)
        most = _STEPS_TO_STOP_TEXT if waits else _STEPS
        return min(most, max(slot.left for slot in self._active))

    def _resize(self) -> None:
        """Makes the ring as long as the next steps need it, and much shorter where it can be."""
        steps = self._steps()
        need = max(slot.length + min(steps, slot.left) for slot in self._active)
        columns = _FEWEST_COLUMNS
        while columns < need:
            columns *= 2
        columns = min(columns, -(-self._longest // 16) * 16)
        if columns > self._columns or columns <= self._columns // 4:
            self._rearrange(range(len(self._slots)), columns)

    def _rearrange(self, rows: Sequence[int], columns: int) -> None:
        chosen = np.asarray(rows, np.int32)
        self._caches = rearrange(
            self._caches, chosen, np.int32(self._offset), columns=columns, mesh=self._mesh
        )
        if self._seen is not None and len(chosen) < len(self._slots):
            self._seen = self._seen[chosen]
        self._offset, self._columns = 0, columns

    def step(self) -> None:
        """Writes some tokens in all slots and collects the texts that have ended."""
        self._resize()
        size, active = len(self._slots), len(self._active)
        leave_at = size - min(self._together, len(self._queue))
        if not self._queue:
            few = size // 4
            leave_at = few if self._leaves_slots(size) and active > few else 0
        result, self._caches, self._seen = write_tokens(
            self._params,
            self._caches,
            self._seen,
            self._device_slots(),
            np.int32(self._offset),
            np.int32(self._steps()),
            np.int32(leave_at if active > leave_at else 0),
            np.bool_(any(slot.prompt.logprobs for slot in self._active)),
            config=self._config,
            compute_dtype=self._dtype,
            most=_STEPS,
        )
        self._offset = (self._offset + int(to_host(result.taken))) % self._columns
        counts, tokens, logprobs = map(to_host, result[1:])
        for number, slot in enumerate(self._slots):
            if slot is not None:
                new = counts[number]
                self.tokens += int(new)
                slot.tokens += tokens[number, :new].tolist()
                slot.logprobs += logprobs[number, :new].tolist()
                if self._collect(slot, len(slot.tokens) - int(new)):
                    self._slots[number] = None

    def _collect(self, slot: _Slot, checked: int) -> bool:
        """Hands a text on if it has ended."""
        prompt, text = slot.prompt, None
        count = tokens_to_stop(slot.tokens, checked, prompt.stop, self._decode or str)
        stopped = count is not None or slot.tokens[-1] in prompt.stop_ids
        if not stopped and slot.left > 0:
            return False
        tokens = slot.tokens[:count]
        if self._decode is not None:
            text = self._decode(tokens)
            text = text[: first_stop(text, prompt.stop)]
        self.done += 1
        self._on_written(
            slot.index,
            Written(
                tuple(tokens),
                "stop" if stopped else "length",
                text,
                np.asarray(slot.logprobs[:count], np.float32) if prompt.logprobs else None,
                slot.prompt_logprobs,
            ),
        )
        return True

    def _device_slots(self) -> Slots:
        size = len(self._slots)
        latest, lengths, written, limits = np.zeros((4, size), np.int32)
        stop_ids = np.full((size, self._most_stops), -1, np.int32)
        keys = np.zeros((size, 2), np.uint32)
        for number, slot in enumerate(self._slots):
            if slot is None:
                continue
            prompt = slot.prompt
            latest[number], lengths[number] = slot.latest, slot.length
            written[number], limits[number] = len(slot.tokens), prompt.max_new_tokens
            stop_ids[number, : len(prompt.stop_ids)] = prompt.stop_ids
            keys[number] = divmod(prompt.seed % 2**64, 2**32)
        return Slots(latest, lengths, written, limits, stop_ids, keys, self._sampling())  # type: ignore[arg-type]

    def _sampling(self) -> SamplingRows:
        return sampling_rows(
            [GREEDY if slot is None else slot.prompt.sampling for slot in self._slots]
        )


def _mesh_of(params: Tree) -> Mesh | None:
    """Returns the mesh that weights lie on, if they do."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None
