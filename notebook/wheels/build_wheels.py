"""Downloads the wheels that the solver notebook installs offline: vLLM, oss-harmony, all that they need, torch too, and uv.

Run it on Kaggle as a script with internet on, on the same image as the solver notebook, and attach its output there. It runs
anywhere else too, as long as Python's version is the image's: `python build_wheels.py FOLDER`.

It installs what it packed into an empty environment, offline, imports vLLM from it and, on a machine with a GPU, asks a tiny
model for a completion. The last line is a verdict, and the exit code is 1 if something is broken. `versions.json` beside the
wheels names what they were tried on; the solver compares it with what it finds.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

# The one place that sets vLLM's version. Its torch 2.11 is built for CUDA 13.0, which needs a driver of version 580 or newer.
VLLM = "0.26.0"
WANTED = (f"vllm=={VLLM}", "oss-harmony==0.0.11")
INSTALLER = "uv==0.13.9"
# The packages that vLLM was measured with (docs/versions.md); only numpy, protobuf and setuptools had to be other ones, which
# satisfy every package at once.
PINS = """
agent-detector==2.0.0 aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 annotated-doc==0.0.7 annotated-types==0.8.0
anthropic==2.11.0 anyio==4.16.0 apache-tvm-ffi==0.1.10 astor==0.8.1 attrs==26.1.0 blake3==1.0.11 cachetools==8.0.0 cbor2==6.2.1
certifi==2026.10.18 cffi==2.1.1 charset-normalizer==3.5.2 click==8.5.1 cloudpickle==3.1.2 compressed-tensors==0.17.0
cryptography==50.0.2 cuda-bindings==13.4.4 cuda-core==1.2.2 cuda-pathfinder==1.9.0 cuda-python==13.4.4 cuda-tile==1.7.0
cuda-toolkit==13.0.2 depyf==0.20.0 detect-installer==0.2.1 dill==0.4.1 dnspython==2.9.2 docstring-parser==0.18.0 einops==0.8.2
email-validator==2.4.0 fastapi-cli==0.0.34 fastapi-cloud-cli==0.28.0 fastapi==0.136.3 fastar==0.12.0 fastsafetensors==0.5.0
filelock==4.2.11 flashinfer-python==0.6.14 frozenlist==1.8.0 fsspec==2026.9.0 googleapis-common-protos==1.76.0 grpcio==1.85.1
h11==0.16.0 hf-xet==1.8.0 httpcore2==2.16.2 httpcore==1.0.9 httptools==0.9.0 httpx-sse==0.4.3 httpx2==2.16.2 httpx==0.28.1
huggingface-hub==1.33.0 humming-kernels==0.1.10 idna==3.20 ijson==3.6.0 interegular==0.3.3 jinja2==3.1.6 jiter==0.19.0
jmespath==1.1.0 jsonschema-specifications==2025.9.1 jsonschema==4.26.0 lark==1.2.2 llguidance==1.7.6 llvmlite==0.47.0
lm-format-enforcer==0.11.3 loguru==0.7.3 markdown-it-py==4.3.0 markupsafe==3.0.4 mcp==1.20.0 mdurl==0.1.2 mistral-common==1.13.1
ml-dtypes==0.6.0 model-hosting-container-standards==0.1.16 mpmath==1.3.0 msgspec==0.22.0 multidict==7.2.1 networkx==3.7
ninja==1.13.2 numba==0.65.0 numpy==2.3.5 nvidia-cublas==13.1.0.3 nvidia-cuda-cccl==13.3.5.0.6 nvidia-cuda-crt==13.5.37
nvidia-cuda-cupti==13.0.85 nvidia-cuda-nvcc==13.5.37 nvidia-cuda-nvdisasm==13.5.37 nvidia-cuda-nvrtc==13.0.88
nvidia-cuda-runtime==13.0.96 nvidia-cudnn-cu13==9.19.0.56 nvidia-cudnn-frontend==1.28.0 nvidia-cufft==12.0.0.61
nvidia-cufile==1.15.1.6 nvidia-curand==10.4.0.35 nvidia-cusolver==12.0.4.66 nvidia-cusparse==12.6.3.3
nvidia-cusparselt-cu13==0.8.0 nvidia-cutlass-dsl-libs-base==4.6.0 nvidia-cutlass-dsl-libs-core==4.6.0
nvidia-cutlass-dsl-libs-cu12==4.6.0 nvidia-cutlass-dsl-libs-cu13==4.6.0 nvidia-cutlass-dsl==4.6.0 nvidia-ml-py==13.615.71
nvidia-nccl-cu13==2.28.9 nvidia-nvjitlink==13.0.88 nvidia-nvshmem-cu13==3.4.5 nvidia-nvtx==13.0.85 nvidia-nvvm==13.5.37
nvtx==0.2.15 openai-harmony==0.0.8 openai==3.52.0 opencv-python-headless==5.0.0.93 opentelemetry-api==1.45.2
opentelemetry-exporter-http-transport==0.66b2 opentelemetry-exporter-otlp-common==0.66b2
opentelemetry-exporter-otlp-proto-common==1.45.2 opentelemetry-exporter-otlp-proto-grpc==1.45.2
opentelemetry-exporter-otlp-proto-http==1.45.2 opentelemetry-exporter-otlp==1.45.2 opentelemetry-proto==1.45.2
opentelemetry-sdk==1.45.2 opentelemetry-semantic-conventions-ai==0.5.1 opentelemetry-semantic-conventions==0.66b2
outlines-core==0.2.14 packaging==26.3 partial-json-parser==0.2.1.1.post7 pillow==13.0.0 prometheus-client==0.26.0
prometheus-fastapi-instrumentator==8.1.0 propcache==0.5.4 protobuf==6.33.6 psutil==7.2.2 py-cpuinfo==9.0.0 pybase64==1.5.1
pycountry==26.2.16 pycparser==3.12 pydantic-core==2.50.4 pydantic-extra-types==2.11.1 pydantic-settings==2.16.3 pydantic==2.14.3
pyelftools==0.33 pygments==2.21.0 pyjwt==2.15.1 pynvvideocodec==2.0.4 python-dotenv==1.2.4 python-json-logger==4.2.0
python-multipart==0.0.34 pyyaml==6.0.3 pyzmq==27.3.0 quack-kernels==0.6.3 referencing==0.37.0 regex==2026.11.15 requests==2.34.2
rich-toolkit==0.20.6 rich==15.0.0 rignore==0.8.1 rpds-py==2026.9.1 safetensors==0.8.0 sentencepiece==0.2.3 sentry-sdk==2.75.0
setproctitle==1.3.8 setuptools==80.10.2 shellingham==1.5.4 six==1.17.0 sniffio==1.3.1 sse-starlette==3.7.0 starlette==1.10.0
supervisor==4.3.0 sympy==1.14.0 tabulate==0.10.0 tiktoken==0.14.0 tilelang==0.1.9 tokenizers==0.23.3 tokenspeed-mla==0.1.8
tokenspeed-triton==3.9.10.post20261028 torch-c-dlpack-ext==0.1.5 torch==2.11.0 torchaudio==2.11.0 torchcodec==0.17.0
torchvision==0.26.0 tqdm==4.70.1 transformers==5.17.0 triton==3.6.0 truststore==0.10.5 typer==0.29.2 typing-extensions==4.16.0
typing-inspection==0.4.5 urllib3==2.8.0 uvicorn==0.54.0 uvloop==0.23.0 watchfiles==1.3.0 websockets==17.4 xgrammar==0.2.1
yarl==1.25.1 z3-solver==4.15.4.0
"""

# Nothing of the image reaches what is tried.
_OWN_PACKAGES = {
    "PYTHONPATH": "",
    "PYTHONHOME": "",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    "USE_TF": "0",
    "USE_FLAX": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
_IMPORT = "import vllm.entrypoints.openai.api_server"
# No text is involved, so the model needs no tokenizer; its weights are random.
_COMPLETION = """
import sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, max_model_len=256,
              gpu_memory_utilization=0.3)
    outputs = llm.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=8, ignore_eos=True, detokenize=False))
    assert len(outputs[0].outputs[0].token_ids) == 8, outputs
"""
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "vocab_size": 512,
    "torch_dtype": "bfloat16",
}


def main(folder: Path, wanted: Sequence[str] = WANTED, pins: str = PINS) -> int:
    """Fills `folder`, tries what is in it, and prints a verdict; returns the exit code."""
    environment = Path(tempfile.mkdtemp(prefix="aimo-wheels-trial-"))
    try:
        download(folder, wanted, pins.split(), environment)
        driver = find_driver()
        python = install_offline(folder, wanted, environment / "venv")
        write_versions(folder, python, driver)
        outcome = try_vllm(python, environment, driver)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"VERDICT: BROKEN: {str(error)[:500]}", flush=True)
        return 1
    finally:
        shutil.rmtree(environment, ignore_errors=True)
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e9
    print(f"VERDICT: OK: {len(wheels)} wheels, {size:.2f} GB, in {folder.resolve()}; complete offline; {outcome}", flush=True)
    return 0


def download(folder: Path, wanted: Sequence[str], pins: Sequence[str], scratch: Path) -> None:
    """Downloads `wanted` and all that it needs, whatever is installed here, in the versions of `pins`."""
    folder.mkdir(parents=True, exist_ok=True)
    constraints = scratch / "pins.txt"
    constraints.write_text("\n".join(pins))
    pip = [sys.executable, "-m", "pip", "download", "--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
    run([*pip, "--constraint", constraints, "--dest", folder, *wanted, INSTALLER])


def install_offline(folder: Path, wanted: Sequence[str], environment: Path) -> Path:
    """Installs from `folder` alone, as the solver does, into an environment that sees no other package; returns its Python."""
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", python, "install", "--no-index", "--no-input", "--no-compile"]
    run([*pip, "--quiet", "--find-links", folder, INSTALLER], PIP_CONFIG_FILE=os.devnull)
    uv = [environment / "bin" / "uv", "pip", "install", "--python", python, "--offline", "--no-index", "--no-config", "--quiet"]
    for distribution in wanted:  # one by one, because oss-harmony replaces files of openai-harmony
        run([*uv, "--cache-dir", environment / "cache", "--find-links", folder, distribution])
    return python


def find_driver() -> str:
    """Returns the version of the NVIDIA driver, "" on a machine without a GPU."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=120, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer[0] if answer else ""


def write_versions(folder: Path, python: Path, driver: str) -> None:
    """Writes versions.json: Python, vLLM, torch, its CUDA, and the driver ("" without a GPU)."""
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(python.parent.parent)}))
    installed = metadata.distributions(path=[str(packages)])
    named = {found.name: found.version for found in installed if found.name in ("vllm", "torch")}
    version = packages / "torch" / "version.py"
    cuda = re.search(r"^cuda\b.*=\s*['\"]([^'\"]+)", version.read_text(), re.MULTILINE) if version.is_file() else None
    versions = {"python": platform.python_version(), **named, "cuda": cuda[1] if cuda else "", "driver": driver}
    text = json.dumps(versions, indent=1)
    (folder / "versions.json").write_text(text + "\n")
    print(text, flush=True)


def try_vllm(python: Path, scratch: Path, driver: str) -> str:
    """Imports vLLM and, with a GPU, asks a tiny model for a completion; returns what was tried."""
    run([python, "-c", _IMPORT])
    if not driver:
        return "vLLM imported; NO GPU HERE: the solver's first run is the first to start it"
    model, program = scratch / "model", scratch / "completion.py"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(_MODEL))
    program.write_text(_COMPLETION)
    run([python, program, model])
    return f"vLLM served a tiny model on this GPU (driver {driver})"


def run(command: Sequence[str | Path], **variables: str) -> None:
    """Prints and runs a command, without the image's packages.

    Raises:
        CalledProcessError: it failed.
    """
    print("$", shlex.join(map(str, command))[:300], flush=True)
    others = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    subprocess.run(command, env={**others, **_OWN_PACKAGES, **variables}, check=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
