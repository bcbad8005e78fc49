"""Runs an image for real, and prints what it finds: sizes, libraries, compilers, users, signals.

    python docker/try_image.py pretrain-toolkit:cpu
    python docker/try_image.py --engine podman localhost/pretrain-toolkit:cuda

Needs an engine, docker or podman, and nothing of the toolkit; the containers get no network and no GPU. It takes some
minutes, most of them for `stop`. Exit status 1 if something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from image import STRICT, Image
from stopped_run import StoppedRun

ROOT = Path(__file__).resolve().parents[1]
LIMIT = {False: 1.5e9, True: 6e9}
"""Bytes of an image for CPUs, and of one for GPUs."""
LINKED_BY_TORCH = {
    *("cublas", "cublasLt", "cudart", "cudnn", "cufft", "cupti", "curand", "cusolver", "cusparse", "cusparseLt"),
    *("nccl", "nvrtc", "nvshmem_host"),
}
BEFORE_COMMAND = re.compile(r"(RUN )?(\|\d+ (\w+=\S* )+)?/bin/sh -c (#\(nop\) )?")
"""What an engine's history adds: the build arguments, the shell."""
USERS = {"its own user": (), "4242, read-only": STRICT}


def layers(image: Image) -> Iterator[str]:
    size = int(image.call("image", "inspect", "--format", "{{.Size}}", image.name))
    yield f"{size / 1e9:.2f} GB"
    for row in image.call("history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image.name).splitlines():
        weight, _, command = row.partition("\t")
        if weight.endswith(("MB", "GB")):
            share = float(weight[:-2]) * {"M": 1e6, "G": 1e9}[weight[-2]] / size
            yield f"{weight:>8} {share:6.1%}  {' '.join(BEFORE_COMMAND.sub('', command).split())[:100]}"
    assert size <= LIMIT[image.is_for_gpus()], "too large"


def labels(image: Image) -> Iterator[str]:
    config = image.config()
    found = {name.rpartition("image.")[2]: value for name, value in config["Labels"].items()}
    assert found["version"] == image.run("--version").split()[-1], found
    assert re.fullmatch("[0-9a-f]{40}", found["revision"]), found
    yield ", ".join(f"{name} {found[name]}" for name in ("version", "revision", "base.name"))
    yield f"user {config['User']}, starts {shlex.join(config['Entrypoint'])}"


def packages(image: Image) -> Iterator[str]:
    """The image's list of packages is complete."""
    document = json.loads(image.python("print(open('/usr/share/sbom/pretrain-toolkit.cdx.json').read())"))
    listed = {(canonical(one["name"]), one["version"]) for one in document["components"]}
    installed = json.loads(image.run("-m", "pip", "list", "--format", "json", options=("--entrypoint", "python")))
    missing = {(canonical(one["name"]), one["version"]) for one in installed} - listed
    assert not missing, missing
    yield f"CycloneDX {document['specVersion']} lists all {len(installed)} packages with their versions"


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def libraries(image: Image) -> Iterator[str]:
    """CUDA's libraries are there, once, and can be loaded."""
    if not image.is_for_gpus():
        yield "no CUDA in this image"
        return
    found = json.loads(image.trial("cuda_libraries"))
    found["nccl"] = ".".join(map(str, found["nccl"]))
    yield "torch {torch}, CUDA {cuda}, cuDNN {cudnn}, NCCL {nccl}".format(**found)
    yield f"loaded: {' '.join(found['loaded'])}"
    yield f"not loaded here: {'; '.join(f'{name} ({why})' for name, why in found['refused'].items()) or 'none'}"
    yield "MB: " + ", ".join(
        f"{name} {size:,}" for name, size in sorted(found["MB"].items(), key=lambda item: -item[1])
    )
    assert not found["twice"] + found["elsewhere"], "CUDA is there twice"
    missing = LINKED_BY_TORCH - {name.split(".so")[0].removeprefix("lib") for name in found["loaded"]}
    assert not missing, missing


def compilers(image: Image) -> Iterator[str]:
    options = (*STRICT, "--volume", f"{image.writable('cache-of-compilers')}:/cache")
    yield image.trial("compiles_on_cpu", options=options)
    if image.is_for_gpus():
        yield image.trial("compiles_for_gpu", options=options)


def users(image: Image) -> Iterator[str]:
    for number, (name, options) in enumerate(USERS.items()):
        runs, cache = (image.writable(f"{folder}-{number}") for folder in ("runs", "cache"))
        volumes = ("--volume", f"{runs}:/runs", "--volume", f"{cache}:/cache")
        said = image.run("recipe", "run", "quickstart", "--rehearse", options=(*options, *volumes))
        (passed,) = [line for line in said.splitlines() if line.startswith("Rehearsal passed")]
        yield f"{name}: {passed}"
    code = "import getpass, pathlib; (pathlib.Path.home() / 'made').touch(); print(getpass.getuser())"
    yield f"4242: is called {image.python(code, options=('--user', '4242:4242'))}, and HOME can be written"
    image.run("recipe", "run", "quickstart", options=STRICT, status=3)
    yield "4242, read-only, without volumes: exit status 3"


def derived(image: Image) -> Iterator[str]:
    """The Dockerfile of docker/README.md, with the example plugin."""
    readme = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    dockerfile = re.findall(r"```dockerfile\n(.*?)```", readme, re.DOTALL)[0]
    written = image.folder / "Dockerfile"
    written.write_text(re.sub(r"^FROM .*", f"FROM {image.name}", dockerfile), encoding="utf-8")
    name = f"{image.name}-with-a-plugin"
    options = shlex.split(os.environ.get("BUILD_OPTIONS", ""))
    image.call("build", *options, "--tag", name, "--file", str(written), str(ROOT / "plugins" / "example"))
    try:
        made = Image(image.engine, name, image.folder)
        (row,) = [line for line in made.run("plugin", "list").splitlines() if "bitfit" in line]
        assert made.config()["User"] == image.config()["User"], "it runs as another user"
        yield f"listed: {' '.join(row.split())}"
    finally:
        image.call("rmi", name)


def first_second(image: Image) -> Iterator[str]:
    """Stopped before Python has a handler for the signal."""
    container = image.call("run", "--detach", "--network", "none", image.name, "recipe", "run", "quickstart").strip()
    image.call("stop", "--time", "30", container)
    status = int(image.call("wait", container))
    image.call("rm", container)
    assert status == 143, status
    yield "stopped at once: status 143, not killed after the grace period"


def stop(image: Image) -> Iterator[str]:
    """Stopped in the middle of a save, a run ends with 143; started again, it ends with the same weights."""
    whole = StoppedRun(image, "whole")
    whole.start()
    status, log = whole.ended()
    assert status == 0, log
    for number, (name, options) in enumerate(USERS.items()):
        run = StoppedRun(image, f"stopped-{number}", options)
        for step in (4, 8, 12):
            run.start()
            run.wait_for_save(step)
            run.stop()
            status, log = run.ended()
            assert status == 143, (status, log)
            if run.was_stopped_in_save(step):
                break
        else:
            raise AssertionError("no save lasted long enough to be interrupted")
        yield f"{name}: in the save of step {step}: status {status}, {log.splitlines()[-1].removeprefix('error: ')}"
        run.start()
        status, log = run.ended()
        assert status == 0, log
        assert run.weights() == whole.weights(), "other weights than those of the run that was not stopped"
        yield f"{name}: resumed; its weights are those of the run that was not stopped, {run.weights()[:12]}"


TRIALS: tuple[Callable[[Image], Iterator[str]], ...] = (
    layers, labels, packages, libraries, compilers, users, derived, first_second, stop
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--engine", default="docker", help="docker (default) or podman")
    parser.add_argument("--only", nargs="+", choices=[trial.__name__ for trial in TRIALS], help="default: all")
    chosen = parser.parse_args()
    failed = False
    folder = Path(tempfile.mkdtemp(prefix="try-image-"))
    folder.chmod(0o755)
    try:
        image = Image(chosen.engine, chosen.image, folder)
        for trial in TRIALS:
            if chosen.only and trial.__name__ not in chosen.only:
                continue
            print(trial.__name__, flush=True)
            try:
                for line in trial(image):
                    print(f"  {line}", flush=True)
            except Exception:  # noqa: BLE001 - the others are tried as well
                failed = True
                print(f"  WRONG: {traceback.format_exc()}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
