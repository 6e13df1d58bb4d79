"""How the rasteriser's kernels are compiled: free of the GIL, kept on disk, and without counting references.

Kernels that allocate nothing need not count references, which Numba would do at every array they touch (most of the time went there); all
memory is handed in. Each file of kernels calls ``drawing_kernel(__file__)``: that is also what makes the cache notice a change in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from env.engine.library import compiled_lazily

_OPTIONS = {"error_model": "numpy", "_nrt": False, "fastmath": {"contract", "nsz", "arcp", "nnan"}}
inlined = numba.njit(forceinline=True, **_OPTIONS)  # becomes part of whoever calls it


def drawing_kernel(file: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: a kernel of the rasteriser; ``file`` is the caller's ``__file__``. Compiled when first called."""
    return compiled_lazily(file, **_OPTIONS)
