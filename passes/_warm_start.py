"""Where a training may begin: at the closed-form solution of the same erasure, a second's work.

As factors beside each matrix W that reads text, W A = W + (W up) down with A - I = up down, so that training
adds its own factors to them, and what is fused afterwards is the closed form's edit and the trained one.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..compiler.ir import Pipeline
from ..compiler.tensors import widen
from ..compiler.text.text_map import columns_of
from ._erasing import erasing_of
from .erase_concepts import Concept, EraseConcepts

if TYPE_CHECKING:
    from .erase_by_training import EraseByTraining

# A tensor as the pipeline calls it -> (down [r, in], up [out, r]).
Factors = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def closed_form(edit: "EraseByTraining") -> EraseConcepts:
    """Return the closed-form erasure of what a training erases."""
    concepts = tuple(Concept(each.name, each.towards, each.synonyms) for each in edit.concepts)
    return EraseConcepts(
        concepts,
        preserve=edit.preserve,
        templates=edit.templates,
        held_out=(),
        neighbors=edit.neighbors,
        vocabulary=edit.vocabulary,
    )


def factors(edit: "EraseByTraining", pipeline: Pipeline) -> Factors:
    """Return what the closed form adds to each matrix that reads text, in factors."""
    maps = erasing_of(closed_form(edit), pipeline).maps
    found = {}
    for text_input in pipeline.family.text_inputs:
        for name, tensor in pipeline.select("denoiser", text_input.pattern):
            columns = columns_of(text_input, tensor)
            weight: NDArray[Any] = widen(tensor.read())[:, columns]
            change = maps[text_input.reads].for_layer(weight)
            down = np.zeros((change.rank, tensor.shape[1]), np.float32)
            down[:, columns] = change.up if change.down is None else change.down
            up = weight if change.down is None else weight @ change.up
            found[name] = down, np.asarray(up, np.float32)
    return found
