//! What a kubelet does with a pod's containers, as far as the mesh's own need it.
//!
//! [`Kubelet::start`] takes a pod as the API server has it, and a network namespace in its place: the pod gets its addresses, each volume
//! becomes a folder (tokens come from the server, as do ConfigMaps), and the init containers run in their order, each with its variables,
//! mounts, user and capabilities: one that ends must have succeeded, one that restarts always is a sidecar, and the next waits for its
//! startup probe; then those of the other containers that name a command. There is no image: a container's program is the workspace's binary
//! of that name, and its files are the machine's, read-only where the container asks for that. A container without a command is an
//! application, which is the test's own.
//!
//! What it does not know of a pod fails the test, rather than being left out.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ApiServer;
use crate::pod::Pod;
use crate::process::{Process, Program};
use crate::wait::eventually;
use crate::{Wire, binary};

/// Starts pods' containers.
#[derive(Debug)]
pub struct Kubelet<'a> {
    server: &'a ApiServer,
    /// Where containers are told that it is.
    api: SocketAddr,
    /// What `/etc/hosts` says in containers: there is no cluster DNS.
    hosts: Vec<(IpAddr, String)>,
}

/// What runs of a pod's containers, by their names.
#[derive(Debug)]
pub struct Containers {
    /// The pod, as the API server has it.
    pub object: Value,
    pub running: BTreeMap<String, Process>,
}

/// One container, and what it is told of its pod.
struct Container<'a> {
    object: &'a Value,
    own: &'a Value,
    folders: &'a BTreeMap<String, PathBuf>,
}

// === impl Kubelet ===

impl<'a> Kubelet<'a> {
    /// Names that containers resolve, with their addresses.
    pub fn new(server: &'a ApiServer, hosts: &[(IpAddr, &str)]) -> Self {
        let hosts = hosts.iter().map(|(ip, name)| (*ip, (*name).to_owned())).collect();
        Self { server, api: server.address(), hosts }
    }

    /// Containers are told that the API server is there.
    pub fn through(self, api: SocketAddr) -> Self {
        Self { api, ..self }
    }

    /// Runs the pod `object` at `pod`, until all that runs on has started.
    pub async fn start(&self, pod: &Pod, object: &Value) -> Containers {
        let caller = self.server.administrator();
        let (v4, v6) = (pod.v4().to_string(), pod.v6().to_string());
        let mut status = json!({
            "phase": "Pending", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}], "hostIP": "10.77.0.1",
            "hostIPs": [{"ip": "10.77.0.1"}],
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        });
        let object = caller.set_status(object, status.clone()).await.expect("a pod's status");
        let folders = self.volumes(&object).await;
        let mut running = BTreeMap::new();
        for own in array(&object["spec"]["initContainers"]) {
            let container = Container { object: &object, own, folders: &folders };
            let mut process = self.run(pod, &container);
            if own["restartPolicy"] == "Always" {
                container.started(pod, &mut process).await;
                running.insert(container.name().to_owned(), process);
            } else {
                let ended = process.wait().await;
                assert!(ended.success(), "{}: {ended}\n{}", container.name(), process.tail());
            }
        }
        for own in array(&object["spec"]["containers"]).iter().filter(|own| own["command"].is_array()) {
            let container = Container { object: &object, own, folders: &folders };
            let mut process = self.run(pod, &container);
            container.started(pod, &mut process).await;
            running.insert(container.name().to_owned(), process);
        }
        status["phase"] = "Running".into();
        status["conditions"][0]["status"] = "True".into();
        let object = caller.set_status(&object, status).await.expect("a pod's status");
        Containers { object, running }
    }

    /// A folder for each volume.
    async fn volumes(&self, object: &Value) -> BTreeMap<String, PathBuf> {
        let uid = text(&object["metadata"]["uid"]);
        let mut folders = BTreeMap::new();
        for volume in array(&object["spec"]["volumes"]) {
            let name = text(&volume["name"]);
            let folder = self.server.folder().path(&format!("pod-{uid}-{name}"));
            fs::create_dir(&folder).expect("a folder");
            // Whose it is, is said by a group; here everybody's.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("a folder of ours");
            for (kind, source) in volume.as_object().into_iter().flatten().filter(|(key, _)| *key != "name") {
                match kind.as_str() {
                    "emptyDir" => {}
                    "projected" => {
                        for source in array(&source["sources"]) {
                            for (kind, source) in source.as_object().into_iter().flatten() {
                                self.fill(object, &folder, kind, source).await;
                            }
                        }
                    }
                    other => self.fill(object, &folder, other, source).await,
                }
            }
            folders.insert(name.to_owned(), folder);
        }
        folders
    }

    /// Writes what one source of a volume gives.
    async fn fill(&self, object: &Value, folder: &Path, kind: &str, source: &Value) {
        let namespace = text(&object["metadata"]["namespace"]);
        let write = |path: &str, content: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, content).expect("a file");
        };
        match kind {
            "serviceAccountToken" => {
                let account = text(&object["spec"]["serviceAccountName"]);
                let audience = source["audience"].as_str().unwrap_or_default();
                let token = self.server.token(namespace, account, audience, Some(object)).await;
                write(text(&source["path"]), &token);
            }
            "configMap" => {
                let name = text(&source["name"]);
                let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
                // A kubelet waits for what is not there, unless it is optional.
                let map = match self.server.administrator().get(&path).await {
                    Ok(map) => map,
                    Err(refused) if refused.code == 404 && source["optional"] == true => return,
                    Err(_) => {
                        eventually(&format!("there is a ConfigMap {namespace}/{name}"), async || {
                            self.server
                                .administrator()
                                .get(&path)
                                .await
                                .map_err(|refused| refused.to_string())
                        })
                        .await
                    }
                };
                let items = array(&source["items"]);
                for (key, content) in map["data"].as_object().into_iter().flatten() {
                    let item = items.iter().find(|item| item["key"] == *key);
                    if items.is_empty() || item.is_some() {
                        write(item.map_or(key, |item| text(&item["path"])), text(content));
                    }
                }
            }
            "downwardAPI" => {
                for item in array(&source["items"]) {
                    write(text(&item["path"]), &field(object, text(&item["fieldRef"]["fieldPath"])));
                }
            }
            other => panic!("a volume's {other}: {source}"),
        }
    }

    /// Starts a container.
    fn run(&self, pod: &Pod, container: &Container<'_>) -> Process {
        let own = container.own;
        let mut variables = container.variables();
        for (name, value) in [("HOST", self.api.ip().to_string()), ("PORT", self.api.port().to_string())] {
            variables.push((format!("KUBERNETES_SERVICE_{name}"), value));
        }
        let command: Vec<String> = [&own["command"], &own["args"]]
            .into_iter()
            .flat_map(array)
            .map(|one| expanded(text(one), &variables))
            .collect();
        let (program, arguments) = command.split_first().expect("a command: there is no image that has one");
        let program = binary(Path::new(program).file_name().expect("a program").to_str().expect("a name"));

        let folder = self.server.folder();
        let hosts = folder.path(&format!("{}.hosts", pod.name()));
        let lines = self.hosts.iter().map(|(ip, name)| format!("{ip} {name}\n"));
        fs::write(&hosts, format!("127.0.0.1 localhost\n::1 localhost\n{}", lines.collect::<String>()))
            .expect("a file");

        // Changes of /etc are this view's own.
        let mut view = format!(
            "mount -t tmpfs run /run; mkdir -p /run/.etc/changes /run/.etc/work
             mount -t overlay etc -o lowerdir=/etc,upperdir=/run/.etc/changes,workdir=/run/.etc/work /etc
             cp {} /etc/hosts; rm -f /etc/resolv.conf; echo nameserver 127.0.0.1 >/etc/resolv.conf\n",
            hosts.display(),
        );
        for mount in array(&own["volumeMounts"]) {
            let path = text(&mount["mountPath"]);
            let ours = ["/var/run/", "/run/", "/etc/"].iter().any(|folder| path.starts_with(folder));
            assert!(ours, "{mount}: in a folder that is not this view's own");
            let folder =
                container.folders.get(text(&mount["name"])).unwrap_or_else(|| panic!("no volume of {mount}"));
            view.push_str(&format!("mkdir -p {path}; mount --bind {} {path}\n", folder.display()));
            if mount["readOnly"] == true {
                view.push_str(&format!("mount -o remount,bind,ro {path}\n"));
            }
        }
        if container.security("readOnlyRootFilesystem") == true {
            view.push_str("mount -o remount,bind,ro /; mount -o remount,ro /etc\n");
        }
        view.push_str("exec \"$@\"");

        let mut started = Program::new(format!("{}-{}", pod.name(), container.name()), "unshare")
            .arg("--mount")
            .arg("sh")
            .flag("-ec", view)
            .arg("sh");
        for argument in container.confined() {
            started = started.arg(argument);
        }
        started = started.arg(program);
        for argument in arguments {
            started = started.arg(argument);
        }
        for (name, value) in &variables {
            started = started.env(name, value);
        }
        pod.namespace().enter(|| Process::start(started, folder))
    }
}

// === impl Container ===

impl Container<'_> {
    fn name(&self) -> &str {
        text(&self.own["name"])
    }

    /// What its security context says, or the pod's.
    fn security(&self, field: &str) -> &Value {
        match &self.own["securityContext"][field] {
            Value::Null => &self.object["spec"]["securityContext"][field],
            own => own,
        }
    }

    /// `setpriv` with its user, group and capabilities; whoever it is, it may read the machine's binaries.
    fn confined(&self) -> Vec<String> {
        const FILES: &str = "+dac_override,+dac_read_search";
        let user = self.security("runAsUser").as_u64().unwrap_or_else(|| panic!("{}: no user", self.name()));
        let group = self.security("runAsGroup").as_u64().unwrap_or(user);
        let non_root = self.security("runAsNonRoot") == true;
        assert!(
            !(non_root && user == 0),
            "{}: a kubelet refuses root where runAsNonRoot is said",
            self.name()
        );
        let capabilities = &self.own["securityContext"]["capabilities"];
        assert_eq!(capabilities["drop"], json!(["ALL"]), "{}: capabilities", self.name());
        let added = array(&capabilities["add"]).iter().map(|one| format!(",+{}", text(one).to_lowercase()));
        let bounding = format!("-all,{FILES}{}", added.collect::<String>());
        let mut arguments = vec![
            "setpriv".to_owned(),
            format!("--reuid={user}"),
            format!("--regid={group}"),
            "--clear-groups".to_owned(),
            format!("--bounding-set={bounding}"),
        ];
        if user == 0 {
            // What is root's is what the bounding set leaves of it.
            arguments.push("--inh-caps=-all".to_owned());
        } else {
            arguments.push(format!("--inh-caps=-all,{FILES}"));
            arguments.push(format!("--ambient-caps=-all,{FILES}"));
        }
        if self.security("allowPrivilegeEscalation") == false {
            arguments.push("--no-new-privs".to_owned());
        }
        arguments
    }

    fn variables(&self) -> Vec<(String, String)> {
        let mut variables: Vec<(String, String)> = Vec::new();
        for one in array(&self.own["env"]) {
            let value = match &one["valueFrom"] {
                Value::Null => expanded(one["value"].as_str().unwrap_or_default(), &variables),
                from if from["fieldRef"].is_object() => {
                    field(self.object, text(&from["fieldRef"]["fieldPath"]))
                }
                from if from["resourceFieldRef"].is_object() => self.resource(&from["resourceFieldRef"]),
                other => panic!("{}: a variable from {other}", self.name()),
            };
            variables.push((text(&one["name"]).to_owned(), value));
        }
        variables
    }

    /// A container's own request or limit, in units of the divisor, rounded up.
    fn resource(&self, reference: &Value) -> String {
        let (kind, name) = text(&reference["resource"]).split_once('.').expect("limits or requests");
        let quantity = self.own["resources"][kind][name].as_str().unwrap_or("0");
        let divisor = reference["divisor"].as_str().filter(|one| *one != "0").unwrap_or("1");
        format!("{}", (amount(quantity) / amount(divisor)).ceil())
    }

    /// Waits until its startup probe, or else its readiness probe, has been answered.
    async fn started(&self, pod: &Pod, process: &mut Process) {
        let probe = match &self.own["startupProbe"] {
            Value::Null => &self.own["readinessProbe"],
            probe => probe,
        };
        let get = &probe["httpGet"];
        assert!(get.is_object(), "{}: probed by {probe}", self.name());
        let port = match &get["port"] {
            Value::Number(number) => number.as_u64(),
            name => array(&self.own["ports"])
                .iter()
                .find(|port| port["name"] == *name)
                .and_then(|port| port["containerPort"].as_u64()),
        };
        let port = port.and_then(|port| u16::try_from(port).ok()).expect("a port");
        let to = SocketAddr::new(pod.v4().into(), port);
        let path = get["path"].as_str().unwrap_or("/");
        eventually(&format!("{} has started", self.name()), async || {
            if let Some(status) = process.ended() {
                panic!("{} ended while starting: {status}\n{}", self.name(), process.tail());
            }
            let stream = tokio::net::TcpStream::connect(to).await.map_err(|error| error.to_string())?;
            let mut wire = Wire::new(stream);
            wire.send(format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n")).await;
            let (head, body) = wire.response().await;
            let said = String::from_utf8_lossy(&body);
            if head.status() < 400 { Ok(()) } else { Err(format!("{said}\n{}", process.tail())) }
        })
        .await;
    }
}

// === what containers are told ===

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// What the downward API calls `path`.
fn field(object: &Value, path: &str) -> String {
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = map.strip_prefix("metadata.").expect("labels or annotations");
        return object["metadata"][map][key].as_str().unwrap_or_default().to_owned();
    }
    match path {
        "status.podIPs" => {
            let ips = array(&object["status"]["podIPs"]).iter().map(|one| text(&one["ip"]));
            ips.collect::<Vec<_>>().join(",")
        }
        "spec.nodeName" => object["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
        _ => {
            let pointer = format!("/{}", path.replace('.', "/"));
            text(object.pointer(&pointer).unwrap_or_else(|| panic!("no {path} in {object:#}"))).to_owned()
        }
    }
}

/// With `$(NAME)` replaced by a variable that is set before; `$$(NAME)` means itself.
fn expanded(value: &str, variables: &[(String, String)]) -> String {
    let (mut out, mut rest) = (String::new(), value);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = variables.iter().rev().find_map(|(name, known)| {
            let after = rest.strip_prefix("$(")?.strip_prefix(name.as_str())?.strip_prefix(')')?;
            Some((known, after))
        });
        if let Some((known, after)) = known {
            out.push_str(known);
            rest = after;
        } else {
            let escaped = rest.starts_with("$$");
            out.push('$');
            rest = &rest[if escaped { 2 } else { 1 }..];
        }
    }
    out + rest
}

/// A quantity of Kubernetes'.
fn amount(quantity: &str) -> f64 {
    let end = quantity.find(|c: char| c.is_alphabetic()).unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(end);
    let unit = match unit {
        "" => 1.0,
        "m" => 0.001,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        other => panic!("a quantity's unit {other}"),
    };
    number.parse::<f64>().expect("a number") * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_fields_are_as_a_kubelet_has_them() {
        let known = [("A".to_owned(), "a".to_owned()), ("A".to_owned(), "b".to_owned())];
        assert_eq!(expanded("$(A)/$(B) $$(A) $A $$ 5$", &known), "b/$(B) $(A) $A $ 5$");
        let pod = json!({
            "metadata": {"name": "web", "labels": {"a/b": "c"}, "annotations": {}},
            "spec": {"serviceAccountName": "web"},
            "status": {"podIPs": [{"ip": "10.77.0.2"}, {"ip": "fd77::2"}]},
        });
        let told = [
            "metadata.name",
            "metadata.labels['a/b']",
            "metadata.annotations['x']",
            "status.podIPs",
            "spec.nodeName",
        ];
        assert_eq!(told.map(|path| field(&pod, path)), ["web", "c", "", "10.77.0.2,fd77::2", ""]);
        assert_eq!([amount("100m"), amount("2"), amount("1Ki")], [0.1, 2.0, 1024.0]);
    }
}
