"""Solutions of lesson 1: each part takes the place of the exercise cell of its number."""


# %% 1.1
def add_noise(latent, noise, kept):
    return kept**0.5 * latent + (1 - kept) ** 0.5 * noise


check("1.1", add_noise)


# %% 1.2
def clean(noisy, noise, kept):
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


check("1.2", clean)


# %% 1.3
def noise_from_v(velocity, noisy, kept):
    return kept**0.5 * velocity + (1 - kept) ** 0.5 * noisy


check("1.3", noise_from_v)


# %% 1.4
def ddim_step(noisy, noise, kept, kept_next):
    latent = (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5
    return kept_next**0.5 * latent + (1 - kept_next) ** 0.5 * noise


check("1.4", ddim_step)


# %% 1.5
def guided(predict, latent, with_text, without, scale):
    both = predict(torch.cat([latent, latent]), torch.cat([with_text, without]))
    text, plain = both.chunk(2)
    return plain + scale * (text - plain)


check("1.5", guided)
