"""Arguments that the C++ operators accept, by name and in order."""

import torch

from tests.kernels.cases import NAMES, pair_inputs

POOL = {"x": torch.zeros(2, 5, 8), "u": torch.zeros(3, 8), "mask": torch.ones(2, 5, dtype=torch.bool), "offsets": None}
PACKED = POOL | {"x": torch.zeros(10, 8), "mask": None, "offsets": torch.tensor([0, 4, 10])}
SCORES = dict(zip(NAMES, (t.float() for t in pair_inputs(3, 4, 8)), strict=True))
BYTES = {"a": SCORES["a"], "b": torch.zeros(4, 8, dtype=torch.int8), "scale": torch.zeros(4)} | dict(
    list(SCORES.items())[2:]
)
PAIRS = SCORES | {"b": torch.zeros(3, 8), "return_features": True}
LOSSES = {
    "z_in_batch": torch.zeros(4, 4),
    "z_hard": torch.zeros(4, 2),
    "s_hard": torch.zeros(4, 2),
    "s_in_batch": torch.zeros(4, 4),
    "duplicates": torch.zeros(4, 4, dtype=torch.bool),
    "temperature": 1.0,
}
LINEAR = {"x": torch.zeros(2, 5, 6), "weight": torch.zeros(2, 4, 6), "bias": torch.zeros(2, 4)}
BACKWARD = {
    "attn_pool_backward": {"dpooled": torch.zeros(2, 3, 8), "dlse": torch.zeros(2, 3), **POOL},
    "iem_scores_backward": {"dz": torch.zeros(3, 4), **SCORES},
    "iem_pairs_backward": {"dz": torch.zeros(3), "dfeatures": torch.zeros(3, 8), **PAIRS},
    "in_batch_terms_backward": {"dcross_entropy": torch.zeros(4), "dpairwise": torch.zeros(4), **LOSSES},
}
del BACKWARD["iem_pairs_backward"]["return_features"]
ACCEPTED = [
    ("attn_pool", POOL),
    ("attn_pool", PACKED),
    ("iem_scores", SCORES),
    ("iem_pairs", PAIRS),
    ("iem_topk", SCORES | {"k": 4}),
    ("in_batch_terms", LOSSES),
    ("linear", LINEAR),
    ("iem_scores_int8", BYTES),
    *BACKWARD.items(),
]
