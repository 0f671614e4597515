"""Counts the operator calls of a step, and those for which a GPU would make the host wait.

A call costs the host a few microseconds whatever it computes; a GPU that computes faster than the
host calls stands idle. A call that needs a value on the host waits until the GPU has done all that
was queued, and then the GPU waits in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# The size of their result, or the result, is a value that the host must know.
WAITING = frozenset(
    (
        "_local_scalar_dense",  # item(), float(), int(), bool(), if
        "nonzero",
        "masked_select",
        "equal",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    )
)
INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))
COPYING = frozenset(("_to_copy", "copy_"))


def waits(operator: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Whether the host waits for a GPU in an operator call.

    On a CPU the copies between devices are not seen.

    Args:
        operator: overload of an operator of torch.
        arguments, options: of the call; tensors of any shapes.
    """
    name = operator.overloadpacket.__name__
    if name in WAITING:
        return True
    if name in INDEXING:
        masks = (torch.bool, torch.uint8)
        return any(each is not None and each.dtype in masks for each in arguments[1])
    if name in COPYING:
        to, origin = (
            (arguments[0].device, arguments[1].device)
            if name == "copy_"
            else (torch.device(options.get("device") or arguments[0].device), arguments[0].device)
        )
        return to.type != origin.type and (to.type == "cpu" or not options.get("non_blocking"))
    return False


class CallCounter(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        calls: number of operator calls.
        waits: number of those for which the host waits, see :func:`waits`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.waits = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count the call and pass it on; see ``TorchDispatchMode``."""
        if func.namespace == "aten":
            self.calls += 1
            self.waits += waits(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
