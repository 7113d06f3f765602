"""What midward is measured against: the plain published sampler, and two peers restated from their descriptions.

`published_sampler` (tests/reference.py) is LLaDA's published algorithm. `frozen` restates Fast-dLLM's prefix and dual
cache (Wu et al., arXiv 2505.22618, section 3.2), `StepBatches` the loop of dlmserve (README and its decision record
003). Both are our words and code over the same network, so that a ratio to them is of the algorithm around it. As in
midward's caches the mask token is never chosen by `frozen`.
Shapes: B rows, L = P + length columns, n columns that a step computes.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers.cache_utils import Cache, DynamicLayer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))
from reference import published_sampler

from midward import LanguageModel
from midward.models import llada
from midward.models._rope import keep_rope_in_float32
from tools.world import layout

MASK, END = 2, 1
SHAPES = {
    "small": dict(vocab_size=2_048, hidden_size=512, layers=4, heads=8, feed_forward=1536),
    "wide": dict(vocab_size=126_464, hidden_size=512, layers=4, heads=8, feed_forward=1536),
    "deep": dict(vocab_size=126_464, hidden_size=512, layers=8, heads=8, feed_forward=1536),
    "sandbox": dict(vocab_size=1_039, hidden_size=192, layers=4, heads=6, feed_forward=544),
    "llada-8b": dict(vocab_size=126_464, hidden_size=4096, layers=32, heads=32, feed_forward=12_288),
    "tiny": dict(vocab_size=2_048, hidden_size=64, layers=2, heads=4, feed_forward=192),
}


def random_model(shape, device, dtype):
    """A model of this shape with random weights, made without any file.

    Its logits have a standard deviation of about 3: with flat ones the order of commits would hang on rounding.
    """
    config = layout.llada_config(**shape, max_length=1024, mask_id=MASK, end_id=END)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = layout.build(config)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        head = network.get_output_embeddings().weight
        head.mul_(3 / (head.float().std() * head.shape[1] ** 0.5))
    if dtype.itemsize < 4:
        network.model.rotary_emb = type(network.model.rotary_emb)(network.config).to(device)
        keep_rope_in_float32(network)
    tokenizer = SimpleNamespace(
        get_vocab=dict, special_tokens_map={}, chat_template=None, decode=lambda ids, **options: ""
    )
    model = LanguageModel("random", llada.family(config, tokenizer), tokenizer, network.requires_grad_(False))
    model._base_hash = "random weights"  # spares the hashing of 16 GB
    return model


@torch.no_grad()
def official(model, ids, *, length, steps, block, mask=None, dtype=torch.float32):
    """Response tokens [B, length] of the published algorithm over the model's own forward; dtype: of its softmax."""

    def forward(canvas, mask):
        return model.head(model.hidden(canvas, mask)).float()

    mask_id = model.family.mask_id
    return published_sampler(
        forward, ids, length=length, steps=steps, block=block, mask_id=mask_id, mask=mask, dtype=dtype
    )


def commit(canvas, first, stop, logits, mask_id, counts, dtype, threshold=None):
    """Write into canvas [B, L] what logits [B, n, V], of columns from `first` on, are surest of: of the masks
    before column `stop` a row's count, or with a threshold those that reach it and one in any case.

    Every column has its confidence, the softmax in `dtype`, computed, wanted or not.
    """
    tokens = logits.argmax(-1)
    sure = logits.to(dtype).softmax(-1).gather(-1, tokens[..., None])[..., 0]
    open_ = canvas[:, first : first + logits.shape[1]] == mask_id
    open_[:, stop - first :] = False
    sure.masked_fill_(~open_, -torch.inf)
    for row, count in enumerate(counts):
        if threshold is not None:
            count = max(1, int((sure[row] >= threshold).sum()))
        best = sure[row].topk(min(count, int(open_[row].sum()))).indices
        canvas[row, first + best] = tokens[row, best]


def share(total, parts, part):
    """The masks that step `part` of `parts` commits, the larger shares first."""
    return total // parts + (part < total % parts)


class _FrozenLayer(DynamicLayer):
    """Keys and values [B, heads, L, size] of a whole forward; a later one overwrites its own columns."""

    keys = values = columns = None

    def update(self, key_states, value_states, *args, **kwargs):
        if self.keys is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys[:, :, self.columns], self.values[:, :, self.columns] = key_states, value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length):
        return query_length if self.keys is None else self.keys.shape[2], 0

    def get_seq_length(self):
        return 0


@torch.no_grad()
def frozen(model, ids, *, length, steps, block, kind="dual", threshold=None, dtype=torch.float64):
    """Response tokens [B, length] with Fast-dLLM's cache.

    A block's first step is a whole forward, whose keys and values stay. Its other steps compute the block alone
    ("dual"), or the block and all behind it ("prefix"), against them. The head reads every column that a step computes,
    and each has its confidence; those of the block that are surest are committed, evenly many a step, or by threshold.
    """
    mask_id = model.family.mask_id
    width = ids.shape[1]
    canvas = torch.cat([ids, ids.new_full((len(ids), length), mask_id)], 1)
    each = steps // (length // block)
    for start in range(width, width + length, block):
        cache = Cache(layers=[_FrozenLayer() for _ in range(model.config.num_hidden_layers)])
        behind = start + block
        first, end, step = 0, width + length, 0
        while step < each if threshold is None else (canvas[:, start:behind] == mask_id).any():
            for layer in cache.layers:
                layer.columns = slice(first, end)
            places = torch.arange(first, end, device=ids.device)[None]
            logits = model.head(model.hidden(canvas[:, first:end], None, cache, places)).float()
            logits[..., mask_id] = -torch.inf
            counts = [share(block, each, step)] * len(ids)
            commit(canvas, first, behind, logits, mask_id, counts, dtype, threshold)
            first, end, step = start, behind if kind == "dual" else width + length, step + 1
    return canvas[:, width:]


@dataclass
class _Request:
    """One row: its canvas [L], and the step that it is at."""

    canvas: torch.Tensor
    step: int = 0


class StepBatches:
    """dlmserve's loop: requests that are at the same step (of equal length and blocks) share the next forward.

    Each tick takes the largest such group, at most `most` rows, and does one step of it: a whole forward, the head on
    every column, the published rule. Nothing is cached, no request is interrupted by a later one, and a canvas is
    always filled to its end.
    """

    def __init__(self, model, *, length, steps, block, most=8, dtype=torch.float64):
        self.model, self.length, self.block, self.most, self.dtype = model, length, block, most, dtype
        self.steps, self.each = steps, steps // (length // block)
        self.waiting = []

    def submit(self, ids):
        mask_id = self.model.family.mask_id
        self.waiting.append(_Request(torch.tensor([*ids, *[mask_id] * self.length], device=self.model.device)))
        return self.waiting[-1]

    @torch.no_grad()
    def run(self):
        """Until all are done."""
        while open_ := [request for request in self.waiting if request.step < self.steps]:
            [((step, size), _)] = Counter((each.step, len(each.canvas)) for each in open_).most_common(1)
            group = [each for each in open_ if (each.step, len(each.canvas)) == (step, size)][: self.most]
            canvas = torch.stack([each.canvas for each in group])
            logits = self.model.head(self.model.hidden(canvas)).float()
            number, within = divmod(step, self.each)
            stop = size - self.length + (number + 1) * self.block
            counts = [share(self.block, self.each, within)] * len(group)
            commit(canvas, 0, stop, logits, self.model.family.mask_id, counts, self.dtype)
            for each, filled in zip(group, canvas, strict=True):
                each.canvas, each.step = filled, step + 1
