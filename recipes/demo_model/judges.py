"""What do the judges look like from outside? Writes both as ONNX, each with a JSON file that names its
labels.

Input: ``image`` [N, 3, 64, 64], 0..1. Outputs: ``concept`` [N, K] logits and ``features`` [N, F] of both;
``style``, ``gender`` and ``skin`` logits of the classifier. Weights are stored in half precision and cast
when a session starts.
"""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from .judge import Classifier
from .scenes import Painter, Scenes
from .text import embed_images, embed_texts
from .world import GENDERS, Concept, World

SMALL = 256  # tensors with fewer values stay in single precision


class ClassifierOutputs(nn.Module):
    """The classifier with its answers in a fixed order."""

    names = ("concept", "style", "gender", "skin", "features")

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        answers = self.classifier(image)
        return tuple(answers[name] for name in self.names)


class ZeroShot(nn.Module):
    """CLIP as a judge: an image is the concept one of whose prompts it lies nearest to."""

    names = ("concept", "features")
    texts: Tensor

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, world: World) -> None:
        super().__init__()
        self.model = model.eval()
        prompts = [prompts_of(world, concept) for concept in world.concepts]
        longest = max(map(len, prompts))
        padded = [(own * longest)[:longest] for own in prompts]
        texts = torch.stack([embed_texts(model, tokenizer, own) for own in padded])
        self.register_buffer("texts", texts * model.logit_scale.exp().detach())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = F.normalize(embed_images(self.model, image), dim=-1)
        count, each, width = self.texts.shape
        nearness = features @ self.texts.reshape(count * each, width).T
        return nearness.reshape(-1, count, each).amax(-1), features


def prompts_of(world: World, concept: Concept) -> list[str]:
    """Plain prompts that name a concept; people in every gender and skin, since captions say them."""
    if not concept.is_profession:
        return [concept.prompt]
    skins = ["", *(f"{skin} skin " for skin in list(world.skins)[1:])]
    return [f"a {skin}{gender} {concept.name}" for skin in skins for gender in GENDERS]


def export_judge(judge: ClassifierOutputs | ZeroShot, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        judge.eval(),
        (torch.rand(2, 3, 64, 64),),
        str(path),
        input_names=["image"],
        output_names=list(judge.names),
        dynamic_axes={name: {0: "n"} for name in ["image", *judge.names]},
        opset_version=17,
        dynamo=False,
    )
    model = onnx.load(path)
    halve(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def halve(model: onnx.ModelProto) -> None:
    """Stores weights in half precision, each behind a cast to single."""
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < SMALL:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)


class Judge:
    """A judge as it ships."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def answers(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Most likely answers of every head to images [N, 3, 64, 64]."""
        parts = [self.session.run(None, {"image": images[i : i + 64]}) for i in range(0, len(images), 64)]
        return {
            name: np.concatenate([part[number] for part in parts]).argmax(1)
            for number, name in enumerate(self.names)
            if name != "features"
        }


def held_out_accuracy(judge: Judge, scenes: Scenes) -> dict[str, float]:
    """The mean over concepts (and for attributes over drawings) of scenes recognized, none of them like a
    training scene."""
    answers = judge.answers(scenes.images.numpy())
    right = answers["concept"] == scenes.shows[:, 0]
    told = {
        "concept": float(np.mean([right[scenes.shows[:, 0] == n].mean() for n in set(scenes.shows[:, 0])]))
    }
    told["drawing"] = float(right.mean())
    for column, name in enumerate(("style", "gender", "skin"), start=1):
        if name in answers:
            has = scenes.shows[:, column] >= 0
            told[name] = float((answers[name] == scenes.shows[:, column])[has].mean())
    return told


def write_labels(judge: Path, world: World, more: dict[str, Any]) -> None:
    """The file beside a judge: what its outputs mean, and the digest of the graph that they are meant for."""
    labels = {"concept": world.labels, "style": world.styles, "gender": GENDERS, "skin": list(world.skins)}
    prompts = {concept.label: concept.prompt for concept in world.concepts}
    told = {"input": "image [N, 3, 64, 64], 0..1", "labels": labels, "prompts": prompts, **more}
    told["sha256"] = hashlib.sha256(judge.read_bytes()).hexdigest()
    judge.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


def held_out(painter: Painter, seed: int, each: int = 4) -> Scenes:
    return painter.held_out_scenes(np.random.default_rng(seed), each)
