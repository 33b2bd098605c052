"""Solutions of lesson 8: each part takes the place of the exercise cell of its number."""


# %% 8.1
def precision_recall(found, truth):
    hits = len(found & truth)
    return hits / len(found), hits / len(truth)


check("8.1", precision_recall)


# %% 8.2
def dose_for_half(rates, shares):
    place = int(np.flatnonzero(shares >= 0.5)[0])
    part = (0.5 - shares[place - 1]) / (shares[place] - shares[place - 1])
    low, high = np.log(rates[place - 1]), np.log(rates[place])
    return float(np.exp(low + part * (high - low)))


check("8.2", dose_for_half)

# %% 8.3
from itertools import combinations


def mean_jaccard(sets):
    return np.mean([len(a & b) / len(a | b) for a, b in combinations(sets, 2)])


check("8.3", mean_jaccard)


# %% 8.4
def step(y, a, target, rate):
    return y - rate * 2 * a.T @ (a @ y - target) / len(target)


check("8.4", step)


# %% 8.5
def verdict(off, searched, control):
    if np.median(off) > 0.7:
        return "never gone"
    if np.median(control) > 0.7:
        return "no evidence"
    return "hidden" if np.median(searched) > 0.7 else "not found"


check("8.5", verdict)
