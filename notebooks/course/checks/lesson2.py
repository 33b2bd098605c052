"""Lesson 2, what memorization is and how to see it: cosines, nearest training image, diversity.

Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), sections 2 and 4 (VM and TM, D_SSCD);
Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection" (CVPR 2022).
"""

from __future__ import annotations

import numpy as np

from checks.exercise import Exercise, wrong


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _unit(a) @ _unit(b).T


def _nearest(vectors: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cosines = vectors @ gallery.T
    return cosines.argmax(axis=1), cosines.max(axis=1)


def _pairs(vectors: np.ndarray) -> np.ndarray:
    return (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]


def _rates(similarities: np.ndarray, threshold: float) -> tuple[float, float]:
    copies = similarities > threshold
    return float(copies.mean()), float(copies.any(axis=1).mean())


def _types(similarities: np.ndarray, of: object = np.max) -> list[str]:
    return ["VM" if of(row) > 0.7 else "TM" for row in similarities]


def _similarities(rng: np.random.Generator) -> tuple[np.ndarray]:
    """Some rows copied by every seed, some by a few, some by none."""
    rows = rng.uniform(0.0, 0.6, (9, 10))
    rows[:3] += 0.39
    rows[3:6, :2] = rng.uniform(0.75, 0.95, (3, 2))
    rows[0] = [*rng.uniform(0.75, 0.85, 6), *rng.uniform(0.0, 0.2, 4)]  # median above, mean below
    return (rows,)


EXERCISES = {
    "2.1": Exercise(
        "cosine similarity of all pairs",
        _cosines,
        wrong(
            lambda a, b: a @ b.T,
            "that is the dot product: long vectors would count as similar to everything.",
            lambda a, b: (a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)).T,
            "each row needs its own length; a single norm of the whole array mixes them.",
        ),
        lambda rng: (rng.normal(size=(4, 6)), rng.normal(size=(5, 6))),
        "an array [N, M]",
    ),
    "2.2": Exercise(
        "the nearest training image of each generation",
        _nearest,
        wrong(
            lambda v, g: ((v @ g.T).argmin(axis=1), (v @ g.T).min(axis=1)),
            "these are the least similar ones: a cosine grows with similarity.",
            lambda v, g: ((v @ g.T).argmax(axis=0), (v @ g.T).max(axis=0)),
            "that names the nearest generation of each training image; it is asked the other "
            "way round.",
        ),
        lambda rng: (_unit(rng.normal(size=(4, 6))), _unit(rng.normal(size=(7, 6)))),
        "a pair (places [N], cosines [N])",
    ),
    "2.3": Exercise(
        "how often, by pictures and by prompts",
        _rates,
        wrong(
            lambda similarities, threshold: tuple(
                float(n) for n in ((similarities > threshold).sum(), _rates(similarities, 0.7)[1])
            ),
            "the first is a number of pictures; a share lies between 0 and 1.",
            lambda similarities, threshold: (
                _rates(similarities, threshold)[0],
                float((similarities > threshold).all(axis=1).mean()),
            ),
            "your second share asks that *every* seed copies; one copy is enough.",
            lambda similarities, threshold: _rates(similarities, threshold)[::-1],
            "the two have changed places: pictures first, then prompts.",
        ),
        lambda rng: (*_similarities(rng), 0.7),
        "a pair (share of pictures, share of prompts)",
    ),
    "2.4": Exercise(
        "verbatim or template, from ten generations",
        _types,
        wrong(
            lambda similarities: _types(similarities, np.median),
            "the paper asks whether any of the ten generations is a copy; your rule wants "
            "half of them to be.",
            lambda similarities: _types(similarities, np.mean),
            "a mean over the generations hides a few exact copies; the paper looks at the "
            "largest similarity.",
        ),
        _similarities,
        "a list of 'VM' and 'TM'",
    ),
    "2.5": Exercise(
        "how alike the pictures of one prompt are",
        lambda vectors: float(np.median(_pairs(vectors))),
        wrong(
            lambda vectors: float(np.median(vectors @ vectors.T)),
            "each picture is compared with itself too: those cosines of 1 have to go.",
            lambda vectors: float(np.mean(_pairs(vectors))),
            "the pairs are right; the paper takes their median.",
        ),
        lambda rng: (_unit(rng.normal(size=(5, 4))),),
        "one number",
    ),
}
