#!/usr/bin/env python3
"""Writes tests/golden/gguf/blocks.safetensors: random blocks of every quantised GGUF type and the values that the
`gguf` package (llama.cpp's own Python reader) gives for them.

    pip install gguf==0.19.0 safetensors numpy && scripts/golden_gguf.py tests/golden/gguf/blocks.safetensors
"""
import sys

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from safetensors.numpy import save_file

# Byte offsets of the f16 scales in a block: they get finite values, everything else random bytes.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}
BLOCKS = 4

random = np.random.default_rng(20240229)
tensors = {}
for kind, offsets in SCALES.items():
    values, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for offset in offsets:
        scales = (random.standard_normal((BLOCKS, 1)) * 0.01).astype(np.float16)
        blocks[:, offset:offset + 2] = scales.view(np.uint8)
    tensors[f"{kind.name}.blocks"] = blocks
    tensors[f"{kind.name}.values"] = quants.dequantize(blocks, kind).reshape(BLOCKS, values).astype(np.float32)
save_file(tensors, sys.argv[1])
