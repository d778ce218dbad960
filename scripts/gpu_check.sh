#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one command: builds engines, runs the gpu tests, compares
# images with the CPU's, and writes step times of every backend to a file for an issue.
# usage: scripts/gpu_check.sh [REPORT.md] [MODEL ...]      default: gpu-check.md shapes
set -euo pipefail
cd "$(dirname "$0")/.."
report=${1:-gpu-check.md}
shift || true
models=("${@:-shapes}")
command -v nvidia-smi >/dev/null || {
    echo "error: nvidia-smi is not there: this needs an NVIDIA GPU and its driver" >&2
    exit 1
}
. scripts/venv.sh
VENV=.venv-gpu venv_ready gpu gpu

# Each engine library that can be had; what is missing is said in the report.
for extra in tensorrt tensorrt-rtx; do
    python -m pip install --quiet --disable-pip-version-check \
        -c scripts/constraints.txt -e ".[$extra]" || echo "note: $extra cannot be installed here"
done
: >"$report"
for model in "${models[@]}"; do
    out=engines/gpu-check-$(basename "$model")
    tgate-export build --model "$model" --precision fp16 --out "$out"
    for target in tensorrt tensorrt-rtx; do
        tgate-export build --model "$model" --precision fp16 --out "$out" --target "$target" ||
            echo "note: no $target plans, see above"
    done
    python scripts/gpu_report.py "$out" --out "$out.md"
    cat "$out.md" >>"$report"
    tgate-export bench "$out" --backend onnxruntime:cuda --json "$out.bench.json" \
        --html "$out.bench.html" || failed=1
done
python -m pytest -m gpu -rs || failed=1
echo "Paste $report into an issue:"
cat "$report"
exit "${failed:-0}"
