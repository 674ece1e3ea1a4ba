"""Which text and image towers? Trains a CLIPModel on random scenes and their captions.

Two things differ from plain CLIP training:

- A caption matches every image in the batch that it describes, not only its own: "a dog" is right for each
  dog. So the target of the contrastive loss is spread over all matches.
- The caption's embedding is read at a random token from its end on, not only at the first end token. The
  denoiser attends to the padding too; this way every token behind the subject carries the whole caption."""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from .scenes import Painter, Range, Scenes
from .sprites import NONE
from .tokenizer import LENGTH, token_ids
from .training import Dice, Plan, train

RANGE = Range(scale=(0.70, 1.0), shift=0.12, unnamed_colors=0.5)
MEAN, STD = 0.5, 0.5  # pixels reach the vision tower as -1..1
TEXT = {"width": 320, "layers": 3, "heads": 5}
VISION = {"width": 160, "layers": 4, "heads": 5}
PROJECTION = 256


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    def tower(width: int, layers: int, heads: int) -> dict[str, int]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": PROJECTION,
        }

    text = {
        **tower(**TEXT),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower(**VISION), "image_size": 64, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))
    model.set_attn_implementation(
        "eager"
    )  # the fused attention's backward pass in bfloat16 is 1.7 times slower on CPU
    return model


def train_clip(
    painter: Painter,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    folder: Path,
    seed: int,
    stop_at: int | None = None,
) -> CLIPModel | None:
    torch.manual_seed(seed)
    model = build_clip(tokenizer)

    def loss_of_batch(dice: Dice) -> Tensor:
        scenes = painter.scenes(dice.numpy, plan.batch, RANGE, distinct=True)
        return contrastive_loss(model, tokenizer, scenes, dice)

    if not train("clip", model, loss_of_batch, plan, folder, seed, stop_at):
        return None
    model.save_pretrained(folder / "clip_contrastive")
    return model


def save_towers(model: CLIPModel, folder: Path) -> None:
    """The CLIPModel, and its text tower as the pipeline loads it."""
    model.save_pretrained(folder / "clip")
    text = CLIPTextModel(model.config.text_config)
    text.load_state_dict(model.text_model.state_dict())
    text.save_pretrained(folder / "text_encoder")


def contrastive_loss(model: CLIPModel, tokenizer: CLIPTokenizer, scenes: Scenes, dice: Dice) -> Tensor:
    ids = token_ids(tokenizer, scenes.captions)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.text_model(input_ids=ids).last_hidden_state
        texts = model.text_projection(states[torch.arange(len(ids)), random_end(ids, tokenizer, dice)])
        images = embed_images(model, scenes.images)
    texts, images = F.normalize(texts.float(), dim=-1), F.normalize(images.float(), dim=-1)
    scale = model.logit_scale.clamp(max=np.log(50)).exp()
    logits = scale * texts @ images.T
    match = torch.from_numpy(matches(scenes)).float()
    by_text = F.cross_entropy(logits, match / match.sum(1, keepdim=True))
    by_image = F.cross_entropy(logits.T, match.T / match.T.sum(1, keepdim=True))
    return (by_text + by_image) / 2


def embed_images(model: CLIPModel, images: Tensor) -> Tensor:
    return model.visual_projection(model.vision_model(pixel_values=(images - MEAN) / STD).pooler_output)


def random_end(ids: Tensor, tokenizer: CLIPTokenizer, dice: Dice) -> Tensor:
    """For each caption its first end token (every other time) or any token of its padding."""
    first = ids.eq(tokenizer.eos_token_id).int().argmax(1)
    ahead = torch.rand(len(ids), generator=dice.torch) * (LENGTH - first)
    padding = torch.rand(len(ids), generator=dice.torch) < 0.5
    return first + (ahead * padding).long()


def matches(scenes: Scenes) -> np.ndarray:
    """Which caption (row) describes which image (column)?"""
    says, shows = scenes.says[:, None], scenes.shows[None]
    return ((says == NONE) | (says == shows)).all(-1)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Normalized embeddings, read where CLIP reads them: at the first end token."""
    with torch.no_grad():
        return F.normalize(
            model.get_text_features(input_ids=token_ids(tokenizer, texts)).pooler_output, dim=-1
        )
