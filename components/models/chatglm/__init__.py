"""ChatGLM3 in the layout that its authors published, loaded as transformers' own Glm, without running its code.

detect.py               what a directory is, and why it is refused
config.py               its config.json as a GlmConfig, and back
weight_files.py         its weight files, read only where they are used
key_mapping.py          weights by name: 200 of the original are 311 of Glm, bit by bit
read_weights.py         all weights of a directory under Glm's names, checked
load_original.py        loads a directory into a model in memory
convert.py              converts a directory to Glm's layout in the cache, once for all workers of a node
save.py                 writes a Glm model in the original layout
adapter_conversion.py   converts LoRA adapters between the two layouts
tiny_model.py           writes a tiny directory in the original layout, for smoke runs and tests
"""
