"""retouch.specs: the documents that people and tools exchange, and the errors they can have.

    read.py         edit.yaml -> Spec; every fault as `file:line: key: what`; and back
    strict_yaml.py  text -> plain values and their lines, in a YAML where nothing has two meanings
    schema.py       what a spec may hold, apart from the blocks of passes, emitters and gates
    fields.py       types that spec blocks share, such as a file that the spec names
    lock.py         edit.lock: digests of every input
    preset.py       lists of concepts that `retouch init` offers
    describe.py     JSON Schemas of all documents, for editors and other tools
    sampling.py     sampling.json: the table that the runtime samples from
    manifest.py     manifest.json: what was built from what, and the evidence for it
    canonical.py    one text, and so one digest, for one value
    errors.py       the exception tree and its exit codes

It knows no model, no pass and no runtime.
"""
