"""retouch.passes: one file a pass; the file's name is its key in the spec.

Files with a leading underscore hold mathematics that passes share; they are no passes.
"""
