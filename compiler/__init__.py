"""retouch.compiler: spec and checkpoint in, artefact out. It knows no particular pass and no model.

The way of the data:

    build.py      the whole way: read, load, passes, emit, seal, gates, manifest, rename
    plan.py       what a build will do, from headers alone
    cost.py       what a build will take; work.py, what its steps ask; multiplications.py, what a run takes
    load.py       a spec's source, whatever it is -> Pipeline, headers only
    ir.py         Pipeline, Component, Selection: what passes transform
    tensors.py    Stored, View, Edited, Tied, Shared: header known, elements on demand
    headers.py    the header of a safetensors file, read as if it were hostile
    contract.py   Pass, Stage, Observer: what a pass must be; studio.py is what one gets that draws or trains
    registry.py   find passes, emitters, gates and probes by file name
    schedule.py   the only loop over passes
    sampling.py   noise schedules, samplers, guidance -> the table of sampling.json
    write.py      the one write pass: read, compute, cast, show, hash, write, free
    seal.py       an artefact as one transaction
    layout.py     the files of a diffusers folder that hold no tensors; schedulers.py names the scheduler
    store.py      a bounded folder of what cost time to make; cache.py says where, digests.py remembers inputs
    describing.py what a model is, for `retouch inspect`; canonical_text.py, for goldens and `retouch diff`

And by question:

    sources/      what may a source be?
    families/     what is known about a family of models?
    adapters/     what does an adapter file change?
    text/         how do prompts become text states, and how is a map of them written?
    graphs/       how does a component become a graph?
    torch_models/ what can only be asked of a running model?
    emit/         one emitter a file
    engines/      how is an engine built without a GPU?
    evidence/     what was measured, and what do the documents say of it?
    gates/        one gate a file
    probes/       one revival probe a file
    commands/     one command-line verb a file
"""
