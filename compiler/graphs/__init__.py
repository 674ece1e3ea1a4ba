"""How does a component become a graph? Traced once without weights, then written in any form, without torch.

interfaces   what goes into and comes out of each graph
graph_edits  structural edits inside a denoiser
capture      a component's config -> its program, captured once and kept
program      a traced computation as plain data
lower        a program -> the ONNX graph of one form, in its final shape
skeleton     a graph without weights, and the forms that there are
packing      weights in 8 bits
combine      guidance as graphs
shapes       has every tensor the shape that its config describes?
prebuild     capture a model's programs before anybody builds with it
"""
