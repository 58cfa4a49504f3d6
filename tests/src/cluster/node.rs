//! A real node: Kubernetes' own kubelet with Debian's containerd, runc and CNI plugins.
//!
//! It is where the calling thread is in the network ([`Network`](crate::pod::Network)'s bridge, whose pods it joins), and in namespaces of
//! its own for everything else: nothing of it outlives [`Node`], and nothing of the machine is changed, but for a folder in each hierarchy
//! of control groups while it runs. Nothing is pulled: it has an image of the workspace's binaries under the chart's name, and
//! [`APPLICATION`], Debian's static busybox.
//!
//! `TULLE_TEST_KUBELET` names the kubelet, which `.ci/run kubernetes` builds. Whoever asks for a node has all of it: what is missing fails
//! the test.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::ApiServer;
use crate::binary;
use crate::netns::shell;
use crate::process::{Folder, Process, Program};
use crate::wait::eventually;

/// The image of applications: a shell, `httpd` and `wget`.
pub const APPLICATION: &str = "localhost/app:1";
/// The node's name.
const NAME: &str = "node";
/// Where Debian has the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A node that is ready.
#[derive(Debug)]
pub struct Node {
    process: Process,
    folder: Folder,
    cgroup: String,
}

// === impl Node ===

impl Node {
    /// Starts it, and waits until the server knows it to be ready.
    ///
    /// # Panics
    /// If a program is not there, or the kernel refuses something.
    pub async fn start(server: &ApiServer) -> Self {
        let kubelet = std::env::var_os("TULLE_TEST_KUBELET")
            .expect("TULLE_TEST_KUBELET names the kubelet; `.ci/run kubernetes` builds it");
        let folder = Folder::new();
        let own = folder.path("");
        let own = own.file_name().and_then(|name| name.to_str()).expect("a folder's name");
        let cgroup = own.replace('.', "-");
        configure(&folder, &cgroup);
        let kubeconfig = server.kubeconfig("node", super::ADMINISTRATOR);
        fs::copy(kubeconfig, folder.path("node.kubeconfig")).expect("a file");
        // In place of kube-proxy, for the one Service that pods ask without the mesh.
        shell(&format!(
            "nft add table ip node; nft 'add chain ip node services {{ type nat hook prerouting priority dstnat; }}'
             nft add rule ip node services ip daddr 10.96.0.1 tcp dport 443 dnat to {}",
            server.address()
        ));
        let proxy = binary("tulle-proxy");
        let program = Program::new("node", "unshare")
            .arg("--mount")
            .arg("--pid")
            .arg("--fork")
            // With the first process of its namespace all others end.
            .arg("--kill-child")
            .arg("bash")
            .flag("-c", include_str!("node.sh"))
            .arg("node.sh")
            .arg(folder.path(""))
            .arg(&cgroup)
            .arg(proxy.parent().expect("a folder"))
            .env("TULLE_TEST_KUBELET", kubelet);
        let process = Process::start(program, &folder);
        let mut node = Self { process, folder, cgroup };
        let path = format!("/api/v1/nodes/{NAME}");
        eventually("the node is ready", async || {
            if let Some(status) = node.process.ended() {
                panic!("the node ended while starting: {status}\n{}", node.process.tail());
            }
            let object = server.administrator().get(&path).await.map_err(|refused| refused.to_string())?;
            if condition(&object, "Ready") {
                Ok(())
            } else {
                Err(format!("{:#}", object["status"]["conditions"]))
            }
        })
        .await;
        node
    }

    /// Says that a pod is for this node, as a scheduler does.
    pub fn place(&self, pod: &mut Value) {
        pod["spec"]["nodeName"] = NAME.into();
    }

    /// What a container wrote, those of the same name before it included.
    pub fn log(&self, pod: &Value, container: &str) -> String {
        let metadata = &pod["metadata"];
        let part = |name: &str| metadata[name].as_str().expect("a name");
        let folder = format!("pods/{}_{}_{}/{container}", part("namespace"), part("name"), part("uid"));
        let entries = fs::read_dir(self.folder.path(&folder)).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
        files.sort();
        files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its processes end at once, with the namespace's first; its control groups go when they have.
        self.process.signal(Signal::KILL);
        shell(&format!(
            "for tries in $(seq 100); do
                 left=$(ls -d /sys/fs/cgroup/{0} /sys/fs/cgroup/*/{0} 2>/dev/null || true)
                 [ -n \"$left\" ] || exit 0
                 find $left -depth -type d -exec rmdir {{}} + 2>/dev/null || sleep 0.1
             done
             echo left: $left >&2; exit {1}",
            self.cgroup,
            // Who fails already says why.
            u8::from(!std::thread::panicking())
        ));
    }
}

/// Whether a condition of this type is true.
pub fn condition(object: &Value, kind: &str) -> bool {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.filter(|one| one["type"] == kind).any(|one| one["status"] == "True")
}

/// Writes what containerd, the CNI plugins and the kubelet are told.
fn configure(folder: &Folder, cgroup: &str) {
    assert!(
        Path::new(PLUGINS).join("bridge").exists(),
        "{PLUGINS} has no CNI plugins; Debian's package is containernetworking-plugins"
    );
    let write = |name: &str, text: &str| fs::write(folder.path(name), text).expect("a file");
    fs::create_dir(folder.path("cni")).expect("a folder");
    fs::create_dir(folder.path("pods")).expect("a folder");
    write(
        "containerd.toml",
        &format!(
            r#"version = 2
root = "/run/images"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[debug]
  level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{}"
"#,
            folder.path("cni").display()
        ),
    );
    let range = |subnet: &str, first: &str, last: &str, gateway: &str| json!([{"subnet": subnet, "rangeStart": first, "rangeEnd": last, "gateway": gateway}]);
    let network = json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "pods",
            "ipam": {
                "type": "host-local", "dataDir": "/run/addresses",
                "ranges": [
                    range("10.77.0.0/24", "10.77.0.100", "10.77.0.200", "10.77.0.1"),
                    range("fd77::/64", "fd77::100", "fd77::200", "fd77::1"),
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }],
    });
    write("cni/pods.conflist", &network.to_string());
    write("resolv.conf", "nameserver 127.0.0.1\n");
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "address": "127.0.0.1",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "resolvConf": folder.path("resolv.conf"),
        "podLogsDir": folder.path("pods"),
        "volumePluginDir": "/run/plugins",
        "makeIPTablesUtilChains": false,
        // The machine's own are its own affair: control groups of version 1 as well as of 2, swap, and how full its disk is.
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{cgroup}"), "enforceNodeAllocatable": [],
        "failSwapOn": false, "localStorageCapacityIsolation": false, "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
    });
    // JSON is YAML.
    write("kubelet.yaml", &kubelet.to_string());
}
