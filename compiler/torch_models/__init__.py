"""What can only be asked of a running model: torch modules around a pipeline's own tensors.

modules    a component's module, built without elements and then given tensors by name
reference  run a traced program one operation at a time: what graphs are compared with
drawing    the runtime's loop in torch, with the samples on the way kept
gradients  a whole model that gradients flow through
inversion  the word that no vocabulary has
shipped    an artefact on disk as a pipeline again
"""
