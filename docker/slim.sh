#!/bin/sh
# Run by the Dockerfile, in the layer that installs. Removes what no run reads; what each part weighs is in NOTES.md.
set -eu

system() {
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /usr/share/doc /usr/share/locale /usr/share/man
    # Of GCC: link-time optimization, sanitizers, and the C and C++ libraries to link statically.
    gcc=$(dirname "$(gcc -print-prog-name=cc1)")
    rm -rf "$gcc/lto1" "$gcc/lto-wrapper" "$gcc/g++-mapper-server" "$gcc/plugin" /usr/bin/*lto-dump*
    find /usr/lib -regextype egrep -regex '.*/lib(asan|hwasan|lsan|tsan|ubsan)(_preinit)?\.(a|o|so.*)' -delete
    find /usr/lib -regextype egrep -regex '.*/lib(c|m-[0-9.]+|mvec|stdc\+\+(_libbacktrace|fs)?|supc\+\+)\.a' -delete
}

packages() {
    cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    find . -type d \( -name tests -o -path ./torch/test \) -prune -exec rm -rf {} +
    find . -name '*.a' -delete
    # Programs of torch's build; torch_shm_manager is of use to data-loader workers.
    if [ -d torch/bin ]; then find torch/bin -type f ! -name torch_shm_manager -delete; fi
    # torch's headers stay, because inductor includes them; Triton has its own copy of CUDA's.
    rm -rf pyarrow/include nvidia/*/include
    # cuSOLVER for several GPUs, which torch does not link.
    rm -f nvidia/*/lib/libcusolverMg.so.*
}

"$1"
