"""retouch.compiler: spec and checkpoint in, artefact out. It knows no particular pass and no model.

build.py      the whole way: read, load, passes, emit, seal, gates, manifest, rename
load.py       diffusers folder -> Pipeline, headers only
ir.py         Pipeline, Component, Selection: what passes transform
tensors.py    Stored, View, Edited, Tied, Shared: header known, elements on demand
contract.py   Pass, Stage, Observer: what a pass must be
registry.py   find passes, emitters and gates by file name
schedule.py   the only loop over passes
sampling.py   noise schedules, samplers, guidance -> the table of sampling.json
encode.py     prompts -> text states of a pipeline's own text encoder
text.py       canonical text of a pipeline, and the difference of two
families/     model families as data
adapters/     adapter files in every spelling -> what they change in a pipeline
describing.py what a model is, for `retouch inspect`
emit/         one emitter a file
gates/        one gate a file
commands/     one command-line verb a file
"""
