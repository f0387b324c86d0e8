"""ChatGLM3 in the layout its authors published, read as transformers' own Glm, with none of its code.

recognize.py   what a directory is, and why it is refused
config.py      its config.json as a GlmConfig, and back
keys.py        its weights by name: 200 of them are Glm's 311, bit by bit
shards.py      its weight files, read only where they are used
weights.py     all of them under Glm's names, checked
load.py        straight into a model in memory
convert.py     into a Glm directory in the cache, once for all workers of a node
write.py       back into the original layout
lora.py        LoRA adapters of either layout, as the other's
tiny.py        a tiny directory in the original layout, for trials and tests
"""
