"""GPT: a causal transformer that predicts an image's tokens one by one, in raster order, as LlamaGen does.

Slot 0 reads the class, slot i reads token i-1, and each slot predicts the token after what it reads.
Training sees all slots at once (teacher forcing); decoding is the same computation, one slot at a time.
"""

import torch
from torch import Tensor, nn
from tqdm import trange

from minar.cache import KVCache
from minar.checks import check_ids, check_number
from minar.condition import ClassLabel
from minar.heads import CategoricalHead
from minar.transformer import Transformer, rope_2d


class GPT(nn.Module):
    """trunk: any Transformer. vocab: number of codes V. grid: (h, w) tokens, N = h * w."""

    def __init__(self, trunk: Transformer, vocab: int, n_classes: int, grid: tuple[int, int]):
        super().__init__()
        self.trunk, self.vocab, self.n_classes, self.grid = trunk, vocab, n_classes, tuple(grid)
        self.embed = nn.Embedding(vocab, trunk.width)
        self.cond = ClassLabel(n_classes, trunk.width)
        self.head = CategoricalHead(trunk.width, vocab)
        nn.init.normal_(self.embed.weight, std=0.02)

    @property
    def n_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def hidden(self, tokens: Tensor, label: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, t) tokens -> (B, t + 1, D), or only the rows that the cache does not hold yet."""
        past = 0 if cache is None else cache.n
        new = self.embed(tokens[:, max(past - 1, 0) :])  # slot i reads token i - 1 ...
        x = new if past else torch.cat([self.cond(label), new], 1)  # ... and slot 0 the class
        place = torch.arange(past, past + x.shape[1], device=x.device) - 1  # where the token read stands; class: -1
        rope = rope_2d(place, self.grid[1], self.trunk.width // self.trunk.n_heads)
        return self.trunk(x, "causal", rope, cache)

    def logits(self, tokens: Tensor, label: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, t) tokens, t <= N - 1, and (B,) labels -> (B, t + 1, V) float32; row i predicts token i.

        With a cache, only the rows that it does not hold yet, and it is filled on the way.
        """
        self._check_ids(tokens, label)
        if tokens.shape[1] >= self.n_tokens:
            raise ValueError(
                f"at most {self.n_tokens - 1} tokens have a token after them, got {tokens.shape[1]}: cut the last"
            )
        return self.head.logits(self.hidden(tokens, label, cache))

    def forward(self, tokens: Tensor, label: Tensor, p_drop: float = 0.1) -> Tensor:
        """Mean cross-entropy, in nats per token, of (B, N) tokens given (B,) labels, each forgotten with p_drop."""
        self.check(tokens, label)
        h = self.hidden(tokens[:, :-1], self.cond.drop(label, p_drop))  # the shift: the last token is never read
        return self.head.loss(h, tokens).mean()

    @torch.no_grad()
    def generate(
        self,
        label: Tensor,
        cfg: float = 1.0,
        prompt: Tensor | None = None,
        use_cache: bool = True,
        progress: bool = False,
        **knobs,
    ) -> Tensor:
        """Draw an image's tokens for each label: (B,) long -> (B, N) long.

        cfg: guidance, 1 is off. prompt: (B, n) first tokens, kept as they are. use_cache=False computes everything
        anew at every token; the result is the same. knobs go to CategoricalHead.sample: temperature, top_k, top_p,
        generator.
        """
        check_ids("label", label, self.n_classes + 1, 1, wait=True)
        check_number("cfg", cfg, 0)
        tokens = self.head.empty(len(label), self.n_tokens)
        start = self.fill_prompt(tokens, prompt)
        cond = label.to(tokens.device)
        if cfg != 1:
            cond = torch.cat([cond, self.cond.null(cond)])  # one pass for both: with the class, and without
        cache = KVCache(self.n_tokens) if use_cache else None
        for i in trange(start, self.n_tokens, disable=not progress, desc="decode"):
            seen = tokens[:, :i].repeat(len(cond) // len(label), 1)
            h = self.hidden(seen, cond, cache)[:, -1:]
            h, h_null = h.chunk(2) if cfg != 1 else (h, None)
            tokens[:, i] = self.head.sample(h, h_null, cfg, **knobs)[:, 0]
        return tokens

    def fill_prompt(self, tokens: Tensor, prompt: Tensor | None) -> int:
        """Write a (B, n) prompt into the first of (B, N) tokens and return n; 0 without one."""
        if prompt is None:
            return 0
        check_ids("prompt", prompt, self.vocab, 2, wait=True)
        if len(prompt) != len(tokens) or prompt.shape[1] > tokens.shape[1]:
            B, N = tokens.shape
            raise ValueError(f"prompt must be (B, n) with B = {B} and n <= {N}, got {tuple(prompt.shape)}")
        tokens[:, : prompt.shape[1]] = prompt
        return prompt.shape[1]

    def check(self, tokens: Tensor, label: Tensor, wait: bool = False) -> None:
        """Raise unless (B, N) tokens and (B,) labels can be trained on. wait: look at the values on a GPU, too."""
        self._check_ids(tokens, label, wait)
        if tokens.shape[1] != self.n_tokens:
            h, w = self.grid
            raise ValueError(f"an image has {self.n_tokens} tokens ({h}x{w}), got {tokens.shape[1]} per row")

    def _check_ids(self, tokens: Tensor, label: Tensor, wait: bool = False) -> None:
        check_ids("tokens", tokens, self.vocab, 2, wait)
        check_ids("label", label, self.n_classes + 1, 1, wait)
        if len(label) != len(tokens):
            raise ValueError(f"one label per row of tokens: got {len(label)} labels for {len(tokens)} rows")
