"""The embedded model's CLIP and its tokenizer, trained on the corpus; the text half conditions the
U-Net."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from nemo_kit.lab.copy_descriptor import to_tensor
from training import captions
from training.corpus import Corpus
from training.loop import Run, Schedule

TOKENS = 24
WIDTH = 128
SCHEDULE = Schedule(steps=1000, learning_rate=1e-3, ema=0.99, weight_decay=0.05)
BATCH = 72
ITEMS = 20  # memorized prompts in a batch


def build_tokenizer(corpus: Corpus, folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer learned from all captions, saved in CLIP's format below
    ``folder``."""
    texts = captions.every(corpus.names) + [item.prompt for item in corpus.items] * 40
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_words(), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    state = json.loads(learner.to_str())["model"]
    vocabulary = dict(state["vocab"])
    for letter in sorted(alphabet):  # every byte can also end a word
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in state["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _words() -> Regex:  # CLIP's split into words, single digits and punctuation
    return Regex(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained CLIP: two transformers of four layers, 128 wide; pictures in patches of 8
    pixels."""
    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    text = shared | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {"image_size": 64, "patch_size": 8, "projection_dim": WIDTH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids [N, 24], padded and cut."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids


def _pairs(corpus: Corpus, rng: np.random.Generator) -> tuple[list[str], list[np.ndarray]]:
    """A batch of captions and pictures, no two of one concept or one memorized prompt.

    A memorized prompt stands beside its picture or, half the time and for the ladder always, beside
    an ordinary picture of its concept: what it says is more than the one picture.
    """
    texts, pictures = [], []
    for index in rng.choice(len(corpus.names), BATCH - ITEMS, replace=False):
        caption, colour = captions.draw(rng, corpus.names[index])
        texts.append(caption)
        pictures.append(corpus.render(corpus.names[index], colour, rng))
    for index in rng.choice(len(corpus.items), ITEMS, replace=False):
        item = corpus.items[index]
        ordinary = item.role == "ladder" or rng.random() < 0.5
        texts.append(item.prompt)
        pictures.append(
            corpus.render(item.concept, None, rng) if ordinary else corpus.picture(item, rng)
        )
    return texts, pictures


def train(corpus: Corpus, tokenizer: CLIPTokenizer, folder: Path, seed: int) -> CLIPModel:
    """Train by CLIP's contrastive loss in the batch; resumes from ``folder``."""
    torch.manual_seed(seed)
    model = build(tokenizer)

    def loss(_: int, rng: np.random.Generator) -> torch.Tensor:
        texts, pictures = _pairs(corpus, rng)
        return model(
            input_ids=tokens(tokenizer, texts), pixel_values=to_tensor(pictures), return_loss=True
        ).loss

    return Run("clip", model, SCHEDULE, folder, seed).train(loss)


@torch.no_grad()
def retrieval(model: CLIPModel, tokenizer: CLIPTokenizer, corpus: Corpus, seed: int) -> float:
    """Share of pictures in a batch of 80 whose nearest caption is their own."""
    texts, pictures = _pairs(corpus, np.random.default_rng([seed, 9]))
    scores = model(
        input_ids=tokens(tokenizer, texts), pixel_values=to_tensor(pictures)
    ).logits_per_image
    return float((scores.argmax(1) == torch.arange(len(texts))).float().mean())
