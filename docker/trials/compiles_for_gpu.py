"""In the image, without a GPU: Triton compiles a kernel to machine code, and the C with which it would start it."""

import subprocess
import sysconfig
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)


# Triton takes an annotation for a constant, so that pointers and numbers have none, and writes constants in upper case.
@triton.jit
def double(x, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803 - as Triton writes them
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)


source = ASTSource(fn=double, signature={"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}, constexprs={"BLOCK": 64})
for capability in CAPABILITIES:
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
backend = Path(triton.__file__).parent / "backends" / "nvidia"
with tempfile.TemporaryDirectory(dir="/cache") as folder:
    includes = [f"-I{backend / 'include'}", f"-I{sysconfig.get_path('include')}"]
    driver = Path(folder) / "driver.so"
    subprocess.run(["gcc", "-shared", "-fPIC", *includes, "-o", driver, backend / "driver.c"], check=True)
print(
    f"Triton {triton.__version__}: a kernel for {', '.join(f'sm_{n}' for n in CAPABILITIES)}, and its driver with gcc"
)
