"""retouch.runtime: open an artefact, verify it, draw with it. Imports no torch and no compiler.

artefact.py   open a folder through its manifest; every byte is hashed before it is used
prompts.py    text -> token ids -> text states
noise.py      our own counter-based noise: one stream an image
sampler.py    the denoising loop over the table of sampling.json
images.py     PNG with provenance metadata, contact sheets
judges.py     ONNX classifiers that say what an image shows
sessions.py   loaded graphs: where they run, what they take and give
devices.py    which devices run graphs here, and what is missing where one does not
openvino_sessions.py, rtx_sessions.py   graphs on OpenVINO, engines on TensorRT-RTX
memory.py     how much memory can a process still take, and what has it taken?
engines.py    which shapes engines take, and batches fitted to them
commands/     the verbs that need nothing else: run, verify
cli.py        the one console script; verbs load lazily
"""
