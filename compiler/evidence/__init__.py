"""What was measured, and what do the documents say of it?

parity    does an emitted graph compute what torch computes?
trial     drawing from the sealed artefact and from its base, for the gates
survey    what images of a pipeline show, kept by content
rounding  measured numbers as manifests say them
claims    fixed limits, and what is not claimed
manifest  manifest.json, assembled from what the build did
card      README.md of an artefact
"""
