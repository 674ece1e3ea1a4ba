"""Run by interop.py in optimum-onnx's own environment: draw from an artefact and save the pixels.

Arguments: artefact folder, .npy of unit noise [N, C, H, W], JSON of {prompts, steps, scale}, output .npy.
Imports nothing of retouch.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTDiffusionPipeline  # type: ignore[import-not-found] # own environment

artefact, noise, request, output = sys.argv[1:]
asked = json.loads(Path(request).read_text())
pipeline = ORTDiffusionPipeline.from_pretrained(artefact)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(
    asked["prompts"],
    num_inference_steps=asked["steps"],
    guidance_scale=asked["scale"],
    latents=torch.from_numpy(np.load(noise)),
    output_type="np",
).images
np.save(output, images)
