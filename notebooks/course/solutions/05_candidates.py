"""Solutions of lesson 5: each part takes the place of the exercise cell of its number."""


# %% 5.1
def activation(values):
    return values.abs().mean(dim=0)


check("5.1", activation)


# %% 5.2
def z_score(activation, hold_out):
    distance = activation - hold_out.mean(dim=0)
    return torch.where(distance == 0, 0.0, distance / hold_out.std(dim=0))


check("5.2", z_score)


# %% 5.3
def layer_candidates(activation, z, theta, k):
    unusual = (z.abs() > theta).nonzero().flatten().tolist()
    return sorted({*unusual, *activation.topk(k).indices.tolist()})


check("5.3", layer_candidates)


# %% 5.4
def widen(score, propose, threshold):
    theta, k = 5.0, 0
    while score(propose(theta, k)) > threshold and theta > 1.0:
        theta, k = theta - 0.25, k + 1
    return theta, k


check("5.4", widen)
