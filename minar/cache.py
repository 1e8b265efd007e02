"""The KV cache: keys and values of slots that are already computed, so that they are not computed again.

Contract: decoding with a cache gives what decoding without one gives. It is handed to the model, never kept inside.
"""

from torch import Tensor


class KVCache:
    """Room for `max_len` slots in every layer; `n` of them are filled. Lower `n` to forget."""

    def __init__(self, max_len: int):
        if max_len < 1:
            raise ValueError(f"a cache needs room for at least one slot, got max_len={max_len}")
        self.max_len = max_len
        self.n = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new slots behind the n old ones and return all of them: (B, H, T, hd) -> (B, H, n + T, hd).

        Memory is taken at the first put, in k's dtype and on k's device: under autocast only k itself knows them.
        Raises ValueError if the slots do not fit, or if the batch is not the one the cache was filled with.
        """
        keys, values = self.room(layer, k)
        end = self.n + k.shape[2]
        keys[:, :, self.n : end] = k
        values[:, :, self.n : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def room(self, layer: int, k: Tensor) -> tuple[Tensor, Tensor]:
        """The whole memory of a layer, (B, H, max_len, hd) twice, with room for k behind the n old slots."""
        end = self.n + k.shape[2]
        if end > self.max_len:
            raise ValueError(f"the cache has room for {self.max_len} slots and {end} are needed: KVCache({end})")
        if layer not in self.layers:
            shape = (*k.shape[:2], self.max_len, k.shape[3])
            self.layers[layer] = k.new_empty(shape), k.new_empty(shape)
        if len(self.layers[layer][0]) != len(k):
            raise ValueError(f"the cache holds a batch of {len(self.layers[layer][0])}, not {len(k)}: use a new cache")
        return self.layers[layer]

    def advance(self, n_new: int) -> None:
        """Count the slots just put as filled. The transformer calls this once, after its last layer."""
        self.n += n_new

    @property
    def bytes(self) -> int:
        """Memory taken, in bytes: 2 * layers * batch * max_len * width * bytes per number."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)
