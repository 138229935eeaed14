"""Arrays that rows are added to.

The memory of a large block moves with its pages when it grows (mremap), so that no row is copied or held twice, where
the parts of a long array and their concatenation are there together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = (np.int16, np.int32, np.int64)


class GrowingArray:
    """Rows (N, *tail) of one type."""

    def __init__(self, dtype: Any, tail: tuple[int, ...] = ()) -> None:
        self._dtype, self._tail = np.dtype(dtype), tail
        self._content = bytearray()

    def __len__(self) -> int:
        return len(self._content) // (self._dtype.itemsize * int(np.prod(self._tail, dtype=np.int64)))

    def add(self, values: NDArray[Any]) -> None:
        """Add rows, of a type that fits."""
        self._content += np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8).data

    def array(self) -> NDArray[Any]:
        """All rows, in the same memory. No more can be added."""
        shape = (len(self), *self._tail)
        return np.frombuffer(self._content, self._dtype).reshape(shape) if len(self) else np.empty(shape, self._dtype)


class GrowingWholeNumbers(GrowingArray):
    """Whole numbers (N,) of 64 bits, as narrow as all of them fit: 16, 32 or 64 bits."""

    def __init__(self) -> None:
        super().__init__(_KINDS[0])

    def add(self, values: NDArray[Any]) -> None:
        """Add rows; all become wider where these do not fit."""
        if len(values):
            bounds = int(values.min()), int(values.max())
            kind = next(kind for kind in _KINDS if np.iinfo(kind).min <= bounds[0] and bounds[1] <= np.iinfo(kind).max)
            if np.dtype(kind).itemsize > self._dtype.itemsize:
                before = self.array()
                self._dtype, self._content = np.dtype(kind), bytearray()
                super().add(before)
        super().add(values)


class GrowingStarts:
    """The starts of ragged rows: 0, and the end of each."""

    def __init__(self) -> None:
        self._ends = GrowingWholeNumbers()
        self._ends.add(np.zeros(1, np.int64))
        self._last = 0

    def add(self, starts: NDArray[Any]) -> None:
        """Add rows by their own starts, the first of which is 0."""
        self._ends.add(starts[1:].astype(np.int64) + self._last)
        self._last += int(starts[-1])

    def array(self) -> NDArray[Any]:
        """(N + 1,) starts. No more can be added."""
        return self._ends.array()
