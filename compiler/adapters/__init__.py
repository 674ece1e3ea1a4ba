"""Adapter files, in every spelling that is found in the wild.

    spellings   which names may a file call a module by?
    kinds       which tensors make one change, and by what formula?
    scaling     how strongly does a file count: alpha, rank, patterns of both
    reading     a file and a pipeline -> changes, or every fault of the file
    blocks      one number a block, by patterns or by the webui's vectors
    describing  what does a file say of itself, without a model?

A name is spelled out whole and looked up whole, never rewritten: a rewriting rule that is wrong for one
module makes a wrong image, a table that lacks it makes an error.
"""
