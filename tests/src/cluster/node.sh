# A node, in mount, process and network namespaces that the caller made: containerd with its images, and then the kubelet, until either ends.
#
# What they write is in /run and /var, which are this view's own. The kubelet sets parameters of the kernel: it finds copies of those that
# are the whole machine's. Images are made here, as nothing is pulled.
set -eu

folder=$1 cgroup=$2 binaries=$3
PATH=$PATH:/usr/sbin:/sbin

mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs run /run
mkdir -p /run/changes /run/work /run/copies
mount -t overlay var -o lowerdir=/var,upperdir=/run/changes,workdir=/run/work /var
rm -rf /var/run
ln -s /run /var/run
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    mkdir -p "/run/copies/${name%/*}"
    cat "/proc/sys/$name" >"/run/copies/$name"
    mount --bind "/run/copies/$name" "/proc/sys/$name"
done
# As on a node, where what is mounted for a pod is seen by the runtime.
mount --make-rshared /

# image NAME TREE USER: what is in TREE, with nothing to run by itself.
image() {
    work=$(mktemp -d -p /run)
    tar --create --file "$work/layer.tar" --directory "$2" --owner=0 --group=0 .
    layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
    echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"User\":\"$3\",\"Env\":[\"PATH=/bin\"],\"Entrypoint\":[\"/bin/busybox\",\"sleep\",\"2147483647\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$layer\"]}}" >"$work/config.json"
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"$1\"],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
    tar --create --file "$work/image.tar" --directory "$work" config.json layer.tar manifest.json
    ctr --namespace k8s.io images import "$work/image.tar"
    rm -r "$work"
}

containerd --config "$folder/containerd.toml" &
containerd=$!
until ctr version >/dev/null 2>&1; do
    kill -0 "$containerd"
    sleep 0.1
done

mkdir -p /run/app/bin /run/app/etc /run/app/tmp
chmod 1777 /run/app/tmp
cp "$(command -v busybox)" /run/app/bin/busybox
for name in cat echo httpd rm sh sleep touch wget; do ln -s busybox "/run/app/bin/$name"; done
image registry.k8s.io/pause:3.10 /run/app ""
image localhost/app:1 /run/app ""
mkdir -p /run/mesh/bin /run/mesh/tmp
chmod 1777 /run/mesh/tmp
for name in tulle tulle-proxy tulle-control-plane; do
    install -m 755 "$binaries/$name" /run/mesh/bin
    # What it is linked with, where it looks for that.
    ldd "$binaries/$name" | grep -o '/[^ ]*' | xargs -r cp --dereference --parents --target-directory=/run/mesh
done
image docker.io/library/tulle:0.1.0 /run/mesh 1337:1337

# One hierarchy, or one for each controller.
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    mkdir "/sys/fs/cgroup/$cgroup"
else
    for hierarchy in /sys/fs/cgroup/*/; do mkdir "$hierarchy$cgroup"; done
fi
"$TULLE_TEST_KUBELET" --config="$folder/kubelet.yaml" --kubeconfig="$folder/node.kubeconfig" --root-dir=/run/kubelet --cert-dir=/run/pki \
    --hostname-override=node --node-ip=10.77.0.1,fd77::1 &
wait -n
