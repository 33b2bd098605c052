"""Solutions of lesson 3: each part takes the place of the exercise cell of its number."""


# %% 3.1
def attention(queries, keys, values):
    scores = queries @ keys.T / queries.shape[1] ** 0.5
    return scores.softmax(dim=1) @ values


check("3.1", attention)


# %% 3.2
def zero(output, neurons):
    gains = torch.ones(output.shape[-1])
    gains[neurons] = 0
    return output * gains


check("3.2", zero)

# %% 3.3
from contextlib import contextmanager


@contextmanager
def zeroed(module, neurons):
    def hook(module, inputs, output):
        gains = torch.ones(output.shape[-1])
        gains[neurons] = 0
        return output * gains

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


check("3.3", zeroed)


# %% 3.4
def contribution(weights, values, out, neuron):
    return torch.outer(weights @ values[:, neuron], out[:, neuron])


check("3.4", contribution)
