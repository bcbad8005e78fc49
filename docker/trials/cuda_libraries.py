"""In the image: loads each of CUDA's libraries, and prints as JSON which, in which versions, and what they weigh."""

import collections
import ctypes
import json
import subprocess
import sysconfig
from pathlib import Path

import torch

site = Path(sysconfig.get_path("purelib"))
files = sorted(file for file in site.glob("nvidia/**/*.so*") if not file.is_symlink())
stems = collections.Counter(file.name.split(".so")[0] for file in files)
found = subprocess.run(["find", "/", "-xdev", "-name", "libcublas*.so*", "-o", "-xdev", "-name", "libcudnn*.so*"],
                       capture_output=True, text=True, check=False).stdout.splitlines()  # fmt: skip
loaded, refused = [], {}
for file in files:
    try:
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        loaded.append(file.name)
    except OSError as error:
        refused[file.name] = str(error).split(":")[0]
folders = (*(site / "nvidia").iterdir(), site / "torch", site / "triton")
weights = {folder.name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 10**6 for folder in folders}
print(
    json.dumps(
        {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": torch.cuda.nccl.version(),
            "loaded": loaded,
            "refused": refused,
            "twice": [stem for stem, times in stems.items() if times > 1],
            "elsewhere": [path for path in found if not path.startswith(str(site))],
            "MB": weights,
        }
    )
)
