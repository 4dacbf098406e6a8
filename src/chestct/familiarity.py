"""How far a scan lies from those that a classifier learned from, by its network's pooled features.

A network answers anything with confidence, so the answer is no sign that it knows such scans. Two
published measures of distance are here. `mahalanobis`: to the nearest class's mean under one
covariance for all classes (Lee et al., NeurIPS 2018), beyond the first axes the probabilistic PCA
of Tipping and Bishop (1999), so that directions in which training scans hardly differ count most.
`neighbours`: to the k-th nearest training scan, features scaled to length one (Sun et al., ICML
2022). The threshold is a rank among validation scans, which had no part in the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from chestct.errors import ClassifierError
from chestct.lookup import look_up

FAMILIARITY_FILE: Final = "familiarity.safetensors"
USUAL_METHOD: Final = "mahalanobis"
KEPT_SHARE: Final = 0.95
"""Share of scans like the validation scans that the threshold calls familiar."""

_MOST_AXES, _MOST_NEIGHBOURS, _NUM_NEAREST = 48, 1000, 5
_MAX_BYTES = 2**28
_WATCHED: Final = "watched"

Features = Float[np.ndarray, "scan feature"]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What tells familiar scans from others.

    Attributes:
        method: A name in `METHODS`.
        arrays: What the method keeps of the training scans.
        watched: Distances of the validation scans, ascending.
        threshold: The largest distance that is still familiar.
    """

    method: str
    arrays: Arrays
    watched: Float[np.ndarray, " scan"]
    threshold: float

    def distance(self, features: Float[np.ndarray, " feature"]) -> float:
        """Distance of one scan's pooled features; has no unit, and is never below 0."""
        return float(self.distances(features[None])[0])

    def distances(self, features: Features) -> Float[np.ndarray, " scan"]:
        """Distances of several scans.

        Raises:
            ClassifierError: The network gives features of another length than were kept.
        """
        wanted = self.arrays["mean"].shape[-1]
        if features.shape[1] != wanted:
            msg = (
                f"{FAMILIARITY_FILE} is about {wanted} features and the network gives "
                f"{features.shape[1]}: get the classifier's folder again."
            )
            raise ClassifierError(msg)
        return METHODS[self.method].measure(self.arrays, features.astype(np.float64))

    def percentile(self, distance: float) -> float:
        """Percentage of the validation scans that lie nearer than `distance`."""
        return 100.0 * float(np.searchsorted(self.watched, distance)) / len(self.watched)

    def write(self, path: Path) -> None:
        """Write arrays and validation distances; method and threshold stand in the card.

        Raises:
            OSError: It cannot be written.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        try:
            save_file(arrays | {_WATCHED: self.watched.astype(np.float32)}, path)
        except SafetensorError as error:
            raise OSError(None, str(error)) from error

    @classmethod
    def read(cls, path: Path, method: str, threshold: float) -> Familiarity:
        """Read what `write` wrote.

        Raises:
            ClassifierError: The file cannot be read, lacks an array or holds what is not finite.
        """
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ClassifierError(f"{path} is larger than {_MAX_BYTES} bytes. {_REMEDY}")
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ClassifierError(f"{path} cannot be read: {error}. {_REMEDY}") from error
        how = look_up(METHODS, method, kind="measure of familiarity")
        missing = sorted({*how.names, _WATCHED} - set(arrays))
        if missing:
            raise ClassifierError(f"{path} lacks '{missing[0]}'. {_REMEDY}")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ClassifierError(f"{path} holds values that are not finite. {_REMEDY}")
        watched = arrays.pop(_WATCHED)
        if watched.size == 0:
            raise ClassifierError(f"{path} holds no validation distances. {_REMEDY}")
        return cls(method, arrays, watched, threshold)


def fit_familiarity(
    training: Features,
    classes: Int[np.ndarray, " scan"],
    validation: Float[np.ndarray, "other feature"],
    method: str = USUAL_METHOD,
) -> Familiarity | None:
    """Learn what familiar scans look like.

    Args:
        training: Pooled features of the scans learned from.
        classes: Their classes.
        validation: Pooled features of other scans of the same kind, for the threshold.
        method: A name in `METHODS`.

    Returns:
        None where there are no features, or too few scans (two are needed of each) to tell.

    Raises:
        UnknownNameError: There is no such method.
    """
    how = look_up(METHODS, method, kind="measure of familiarity")
    if training.shape[1] == 0 or len(training) < _FEWEST or len(validation) < _FEWEST:
        return None
    arrays = how.fit(training.astype(np.float64), classes)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    found = Familiarity(method, arrays, np.zeros(0), 0.0)
    watched = np.sort(found.distances(validation))
    return replace(found, watched=watched, threshold=threshold_of(watched))


_FEWEST = 2


def threshold_of(watched: Float[np.ndarray, " scan"]) -> float:
    """The distance that `KEPT_SHARE` of like scans do not exceed, from sorted distances.

    The rank of conformal prediction, which holds for any distribution; where the scans are too few
    for it, the largest distance, which promises less.
    """
    rank = min(int(np.ceil((len(watched) + 1) * KEPT_SHARE)), len(watched))
    return float(watched[rank - 1])


_REMEDY: Final = "Get the classifier's folder again."


@dataclass(frozen=True)
class _Method:
    """A measure: how it is fitted, how it measures, which arrays it keeps."""

    fit: Callable[[Features, Int[np.ndarray, " scan"]], dict[str, np.ndarray]]
    measure: Callable[[Arrays, Features], Float[np.ndarray, " scan"]]
    names: tuple[str, ...]


def _fit_mahalanobis(
    features: Features, classes: Int[np.ndarray, " scan"]
) -> dict[str, np.ndarray]:
    """Class means, the main axes of what is left within classes, and the spread along and off."""
    means = np.stack([features[classes == one].mean(axis=0) for one in np.unique(classes)])
    within = features - means[np.searchsorted(np.unique(classes), classes)]
    scale = np.maximum(within.std(axis=0), 1e-3 * max(float(within.std()), 1e-12))
    num_axes = max(min(_MOST_AXES, len(features) // 4, features.shape[1] - 1), 1)
    _, spread, axes = np.linalg.svd(within / scale, full_matrices=False)
    variance = spread**2 / len(features)
    floor = 1e-3 * float(variance.mean()) + 1e-12
    rest = float(variance[num_axes:].sum()) / max(features.shape[1] - num_axes, 1)
    return {
        "mean": means,
        "scale": scale,
        "axes": axes[:num_axes],
        "variance": np.maximum(variance[:num_axes], floor),
        "rest": np.array([max(rest, floor)]),
    }


def _measure_mahalanobis(arrays: Arrays, features: Features) -> Float[np.ndarray, " scan"]:
    """Distance to the nearest class, per feature, so that networks of any width compare."""
    apart = (features[:, None] - arrays["mean"][None]) / arrays["scale"]
    along = apart @ arrays["axes"].T
    off = np.maximum((apart**2).sum(-1) - (along**2).sum(-1), 0.0)
    squared = (along**2 / arrays["variance"]).sum(-1) + off / arrays["rest"][0]
    return np.asarray(np.sqrt(squared.min(axis=1) / features.shape[1]))


def _fit_neighbours(features: Features, classes: Int[np.ndarray, " scan"]) -> dict[str, np.ndarray]:
    """Training scans on the unit sphere, every n-th where there are many."""
    del classes
    every = -(-len(features) // _MOST_NEIGHBOURS)
    return {"mean": features.mean(axis=0), "bank": _on_sphere(features[::every])}


def _measure_neighbours(arrays: Arrays, features: Features) -> Float[np.ndarray, " scan"]:
    bank = arrays["bank"]
    cosine = np.clip(_on_sphere(features) @ bank.T, -1, 1)
    nearest = np.sort(1 - cosine, axis=1)[:, min(_NUM_NEAREST, bank.shape[0]) - 1]
    return np.asarray(np.sqrt(2 * nearest))


def _on_sphere(features: Features) -> Features:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12))


METHODS: Final[dict[str, _Method]] = {
    "mahalanobis": _Method(
        _fit_mahalanobis, _measure_mahalanobis, ("mean", "scale", "axes", "variance", "rest")
    ),
    "neighbours": _Method(_fit_neighbours, _measure_neighbours, ("mean", "bank")),
}
"""Name to measure."""


def separation(familiar: Float[np.ndarray, " scan"], unlike: Float[np.ndarray, " other"]) -> float:
    """Area under the ROC of distances: how often an unlike scan is further than a familiar one."""
    further = (unlike[:, None] > familiar[None]).mean()
    return float(further + 0.5 * (unlike[:, None] == familiar[None]).mean())
