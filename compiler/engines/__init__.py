"""How is a TensorRT engine built, on a machine that need not have a GPU?

building  an ONNX graph -> an engine, in a process that may not take all memory
worker    that process
profiles  which shapes an engine must take
memory    how much memory can still be had here
"""
