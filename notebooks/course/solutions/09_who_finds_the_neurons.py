"""Solutions of lesson 9: each part takes the place of the exercise cell of its number."""


# %% 9.1
def order(scores):
    known = [(-v, layer, n) for layer, own in scores.items() for n, v in enumerate(own.tolist())]
    return [(layer, n) for _, layer, n in sorted(known)]


check("9.1", order)


# %% 9.2
def slopes(memory, width):
    gates = torch.ones(width, requires_grad=True)
    (slope,) = torch.autograd.grad(memory(gates), gates)
    return slope


check("9.2", slopes)


# %% 9.3
def quality(order, truth, k):
    places = [place for place, neuron in enumerate(order, 1) if neuron in truth]
    precisions = [hits / place for hits, place in enumerate(places, 1)]
    return sum(precisions) / len(truth), len(truth & set(order[:k])) / len(truth)


check("9.3", quality)


# %% 9.4
def deletion_curve(score, order, sizes, draw):
    sets = [set(order[:k]) for k in sizes]
    return [score(one) for one in sets], [score(draw(one)) for one in sets]


check("9.4", deletion_curve)


# %% 9.5
def agreement(orders, k):
    best = [set(order[:k]) for order in orders.values()]
    return np.array([[len(a & b) / len(a | b) for b in best] for a in best])


check("9.5", agreement)


# %% 9.6
def roles(score, neurons, threshold):
    necessary = {one for one in neurons if score({one}) <= threshold}
    sufficient = {one for one in neurons if score(neurons - {one}) > threshold}
    return necessary, sufficient


check("9.6", roles)
