"""Generalists, and for every kind of token a specialist: the sets of MoP, one for each count.

Half of a set, rounded up, are generalists: those that NAEE keeps. The tokens fall into as many domains as there are
others to keep, the other experts into as many clusters of those that are good at the same domains, and of each cluster
the expert stays that is most particular about tokens. All of it is known from the products of the experts' outputs at
each token, the router's logits, and what goes into the layer.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from moeits.calibration.routing import Tried
from moeits.extras import need

_MOST_ROUNDS = 100

Generalists = Callable[[int], Sequence[int]]
"""Of how many -> which experts."""


def sets_of_specialists(tried: Tried, generalists: Generalists, rng: np.random.Generator) -> np.ndarray:
    """(E, E): row n has a 1 for each of the n + 1 experts that stay."""
    experts = tried.experts
    errors, particular = errors_alone(tried), particularity(tried.logits)
    inputs = tried.hidden.float().cpu().numpy()
    seeds = first_centres(inputs, max(experts // 2, 1), rng)
    members = np.zeros((experts, experts))
    for count in range(1, experts + 1):
        core = [*generalists(count - count // 2)]
        others = [expert for expert in range(experts) if expert not in core]
        special: list[int] = []
        if domains := count // 2:
            profiles = profiles_of(errors, k_means(inputs, seeds[:domains]))
            clusters = alike_by_rank(profiles[others], domains)
            special = [max(np.array(others)[own].tolist(), key=particular.__getitem__) for own in clusters]
        members[count - 1, core + special] = 1
    return members


def errors_alone(tried: Tried) -> np.ndarray:
    """(T, E): how far, squared, the layer's output with one expert alone is from that with all, at each token.

    The router is asked again with that expert alone, as it would be if all others were gone; one that cannot be asked
    about so few gives it a gate of 1.
    """
    gram, whole = tried.gram, tried.whole
    alone = torch.ones_like(whole)
    for expert in range(tried.experts) if tried.least <= 1 else ():
        alone[:, expert] = tried.router.weights([expert])[:, expert]
    with_all = (gram @ whole[:, :, None])[:, :, 0]
    own = torch.diagonal(gram, dim1=1, dim2=2)
    output = (with_all * whole).sum(1, keepdim=True)
    return (alone.square() * own - 2 * alone * with_all + output).double().clamp(min=0).cpu().numpy()


def particularity(logits: torch.Tensor) -> np.ndarray:
    """(E,): how unevenly an expert's probability is spread over T tokens, from 0 where it is even to log2 T for one."""
    probabilities = logits.double().softmax(1).cpu().numpy()
    shares = probabilities / np.maximum(probabilities.sum(axis=0), np.finfo(float).tiny)
    logs = np.log2(len(shares) * shares, out=np.zeros_like(shares), where=shares > 0)
    found: np.ndarray = (shares * logs).sum(axis=0)
    return found


def profiles_of(errors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(E, domains): the mean of the errors (T, E) at the tokens of each domain that has any."""
    return np.stack([errors[labels == domain].mean(axis=0) for domain in np.unique(labels)], axis=1)


def first_centres(inputs: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, H): tokens, each drawn by its squared distance to the nearest of those before it (k-means++).

    The first of them are where fewer domains begin.
    """
    chosen = [int(rng.integers(len(inputs)))]
    nearest = _distances(inputs, inputs[chosen])[:, 0]
    while len(chosen) < count:
        weights = nearest.astype(np.float64)
        even = np.full(len(inputs), 1 / len(inputs))
        chosen.append(int(rng.choice(len(inputs), p=weights / weights.sum() if weights.any() else even)))
        nearest = np.minimum(nearest, _distances(inputs, inputs[chosen[-1:]])[:, 0])
    return inputs[chosen]


def k_means(inputs: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(T,): the domain of each token, by Lloyd's algorithm from these centres; one without tokens stays where it is."""
    labels = np.full(len(inputs), -1)
    for _ in range(_MOST_ROUNDS):
        found = _distances(inputs, centres).argmin(axis=1)
        if (found == labels).all():
            break
        labels, centres = found, centres.copy()
        for domain in np.unique(labels):
            centres[domain] = inputs[labels == domain].mean(axis=0)
    return labels


def _distances(inputs: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(T, centres): squared."""
    norms = np.square(inputs).sum(axis=1)[:, None] + np.square(centres).sum(axis=1)
    found: np.ndarray = np.maximum(norms - 2 * inputs @ centres.T, 0)
    return found


def alike_by_rank(profiles: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows of each of `count` clusters, by Ward's method on ranks within each profile.

    Standardised ranks lie as far apart, squared, as 1 - Spearman's correlation says, so that both readings of the
    paper, a similarity and clusters around centres, are the same.
    """
    if count >= len(profiles):
        return [np.array([row]) for row in range(len(profiles))]
    ranks = need("scipy.stats", extra="aligned").rankdata(profiles, axis=1)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(centred, axis=1, keepdims=True)
    hierarchy = need("scipy.cluster.hierarchy", extra="aligned")
    tree = hierarchy.linkage(centred / np.where(spread > 0, spread, 1), "ward")
    labels = hierarchy.cut_tree(tree, n_clusters=count)[:, 0]
    return [np.flatnonzero(labels == label) for label in range(count)]
