"""Writes a GGUF file with its weights in another format, in the environment of llama.cpp.

python quantize_gguf.py SOURCE.gguf TARGET.gguf BF16|Q8_0
"""

import ctypes
import sys

import llama_cpp

FORMATS = {"BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def main() -> int:
    source, target, weight_format = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[weight_format]
    params.nthread = 2
    params.pure = True
    # The source is quantized itself: every peer gets the weights that its blocks stand for.
    params.allow_requantize = True
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(main())
