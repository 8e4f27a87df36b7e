"""What training rows are called: a path, a key. Those of millions take little more than their letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST_NAME = 1024
"""Characters of a name; of a longer one the rest is left out."""
CUT = "..."


@dataclass(frozen=True, kw_only=True, eq=False)
class RowNames:
    """Names by example id.

    Raises:
        ValueError: ids are not ascending, or the letters are no UTF-8 that ends where names do.
    """

    ids: NDArray[np.int64]
    """`[n]` ascending: the examples that have a name."""
    ends: NDArray[np.int64]
    """`[n]` where in `letters` each name ends; it begins where the one before ends."""
    letters: NDArray[np.uint8]
    """All names in UTF-8, in the order of `ids`."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.ends):
            raise ValueError(f"there are {len(self.ids)} ids and {len(self.ends)} names; they must be equally many")
        if (self.ids[1:] <= self.ids[:-1]).any():  # differences might not be of int64
            raise ValueError("ids must be ascending")
        ends = np.append(0, self.ends)
        if (ends[1:] < ends[:-1]).any() or ends[-1] != len(self.letters):
            raise ValueError("names must end one after the other, the last with the letters")
        _ = self.letters.tobytes().decode("utf-8")  # UnicodeDecodeError is a ValueError
        starts = self.letters[ends[ends < len(self.letters)]]
        if ((starts & 0xC0) == 0x80).any():
            raise ValueError("a name must not end within a letter")

    @classmethod
    def of(cls, ids: NDArray[np.int64], names: Sequence[str]) -> RowNames:
        """Names of examples; an empty one is none.

        Args:
            ids: `[n]` example ids, unique.
            names: `[n]`, cut to `LONGEST_NAME`; what UTF-8 cannot spell is written as Python would escape it.
        """
        there = sorted((int(i), name) for i, name in zip(ids, names, strict=True) if name)
        cut = (n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - len(CUT)] + CUT for _, n in there)
        spelled = [name.encode("utf-8", "backslashreplace") for name in cut]
        return cls(
            ids=np.array([i for i, _ in there], np.int64),
            ends=np.cumsum([len(name) for name in spelled], dtype=np.int64),
            letters=np.frombuffer(b"".join(spelled), np.uint8),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: NDArray[np.int64]) -> dict[int, str]:
        """The names of those among ids, of any shape, that have one."""
        wanted = np.unique(ids)
        at = np.searchsorted(self.ids, wanted)
        at = at[self.ids[np.minimum(at, len(self) - 1)] == wanted] if len(self) else at[:0]
        starts = np.where(at > 0, self.ends[at - 1], 0)
        found = zip(self.ids[at].tolist(), starts.tolist(), self.ends[at].tolist(), strict=True)
        return {i: self.letters[start:end].tobytes().decode("utf-8") for i, start, end in found}
