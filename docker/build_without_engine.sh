#!/bin/sh
# Builds the image where there is neither a Docker engine nor a registry: with Debian's buildah, on a base made from
# Debian's packages. As root, after `apt-get install buildah podman runc debootstrap`, from the root of the repository:
#
#     docker/build_without_engine.sh STORE cpu|cuda|cuda12
#
# STORE is a folder of 5 GB (cpu) to 25 GB; removing it removes everything. Then `. STORE/environment`, and `podman` runs
# the image: docker/try_image.py. From the environment: TORCH_INDEX, a mirror of the index; BUILD_OPTIONS, further options
# of buildah, such as --volume for a mirror's certificate.
set -eu
export LC_ALL=C.UTF-8
[ $# = 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
store=$(cd "$1" && pwd)
case $2 in
    cpu) index=https://download.pytorch.org/whl/cpu ;;
    cuda12) index=https://download.pytorch.org/whl/cu126 ;;
    cuda) index= ;;
    *) echo "$2: cpu, cuda or cuda12" >&2; exit 2 ;;
esac

cat > "$store/environment" <<END
export BUILDAH_ISOLATION=chroot CONTAINERS_CONF=$store/containers.conf CONTAINERS_STORAGE_CONF=$store/storage.conf
END
# Limits as a user that is not root may set them: some hosts refuse higher ones even to root.
cat > "$store/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
cat > "$store/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$store/images"
runroot = "$store/run"
END
. "$store/environment"

base=localhost/debian-python:bookworm
if ! buildah inspect --type image "$base" > /dev/null 2>&1; then
    rm -rf "$store/root"
    debootstrap --variant=minbase --include=ca-certificates,python3-dev,python3-venv bookworm "$store/root" > "$store/debootstrap.log"
    # As in debian:bookworm-slim, on which the real base is built.
    (cd "$store/root" && rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc usr/share/man usr/share/locale)
    find "$store/root/usr/lib" -name 'libpython*.a' -delete
    tar -C "$store/root" --one-file-system -cf "$store/root.tar" .
    rm -rf "$store/root"
    printf 'FROM scratch\nADD root.tar /\n' | buildah bud --file - --tag "$base" --ignorefile /dev/null "$store"
    rm "$store/root.tar"
fi

# BUILD_OPTIONS are words.
# shellcheck disable=SC2086
buildah bud --layers --pull-never ${BUILD_OPTIONS:-} \
    --build-arg BASE_IMAGE="$base" \
    --build-arg TORCH_INDEX="${TORCH_INDEX-$index}" \
    --build-arg VERSION="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' toolkit/__init__.py)" \
    --build-arg REVISION="$(git rev-parse HEAD 2> /dev/null || echo unknown)" \
    --file docker/Dockerfile --tag "localhost/pretrain-toolkit:$2" .
