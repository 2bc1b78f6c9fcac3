"""Peak of live tensor storage inside a block, counted at every operator: exact and the same on every machine."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakTensorBytes(TorchDispatchMode):
    """`peak` is the largest number of bytes that storages created inside the block held at one time."""

    def __init__(self):
        super().__init__()
        self.peak = self._live = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage(), before)
        return result

    def _add(self, storage, before):
        key = storage._cdata
        if key in before or key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = size
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key):
        self._live -= self._known.pop(key)
