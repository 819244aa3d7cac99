"""One number for each kept expert, by which its output is best taken more or less, in closed form.

With experts gone the others take their tokens and, renormalised or not, other gates: what they give is too much or too
little as a whole, before any of it is wrong in itself. A number for each expert is learned from so much data that it
holds for any text, so the ridge pulls towards the weights scaled by it, and not towards the weights as they were.
"""

from collections.abc import Mapping

import torch

from moeits.refitting.features import ExpertFeatures

# Tokens at once: k outputs of each are held.
_CHUNK = 512
# Ridge towards 1, as a share of the mean square of an expert's outputs.
_PULL = 0.01


def best_scales(
    features: ExpertFeatures, old: Mapping[int, torch.Tensor], residual: torch.Tensor, targets: int
) -> dict[int, torch.Tensor]:
    """Expert -> (targets,) numbers c of least sum_t || R_t - sum_e c_e f_e(x_t) ||^2, a little ridge towards 0.

    `old` are down projections (I, H), `residual` (T, targets x H) what they leave of each target. So an expert's best
    weight is 1 + c times the old one.
    """
    number = torch.zeros(1 + max(old), dtype=torch.long)
    number[list(old)] = torch.arange(len(old))
    gram = torch.zeros(len(old), len(old), dtype=torch.float64)
    to_target = torch.zeros(len(old), targets, dtype=torch.float64)
    for begin in range(0, len(residual), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        chosen, given = features.outputs(part, old)
        which = number[chosen]
        pairs = (given @ given.transpose(1, 2)).double()
        rows, columns = which[:, :, None].expand_as(pairs), which[:, None, :].expand_as(pairs)
        gram.index_put_((rows.reshape(-1), columns.reshape(-1)), pairs.reshape(-1), accumulate=True)
        left = residual[part].unflatten(1, (targets, -1))
        to_target.index_add_(0, which.reshape(-1), (given @ left.transpose(1, 2)).double().flatten(0, 1))
    gram.diagonal().add_(_PULL * gram.diagonal().mean().clamp(min=1e-30))
    found = torch.linalg.solve(gram, to_target).float()
    return {e: found[n] for n, e in enumerate(old)}
