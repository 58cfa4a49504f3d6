//! `tulle install`, `upgrade` and `uninstall` as people call them, and a rollback: Helm's own engine does what they ask of it (`tests/peers/helm.py`), at a
//! real API server.
//!
//! What is in the chart is the business of `tests/tests/chart.rs`; here it is what becomes of the objects, and of what others write meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tulle_control_plane::inject::{Decision, INJECT, Namespace, Settings, inject};
use tulle_tests::cluster::{ApiServer, Caller};
use tulle_tests::peer::python;
use tulle_tests::{Program, binary, eventually};

use crate::chart::{CONTROL_PLANE, SYSTEM, rendered};

const IMAGE: &str = "registry.example/tulle";

/// Helm's program, and whom it is to ask as whom.
struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    /// Where it may keep what it likes.
    home: PathBuf,
}

// === impl Helm ===

impl Helm {
    fn of(server: &ApiServer) -> Self {
        let script = python("helm.py").expect("a Python with helm-python-sdk; `.ci/run install` makes one");
        let words = [script.path.as_os_str()].into_iter();
        let words = words.chain(script.arguments.iter().map(|argument| argument.as_os_str()));
        let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let program = server.folder().path("helm");
        fs::write(&program, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "))).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let kubeconfig = server.kubeconfig("administrator", "administrator");
        Self { program, kubeconfig, home: server.folder().path("home") }
    }

    /// What a verb of the command says.
    #[track_caller]
    fn tulle(&self, verb: &str, arguments: &[&str]) -> String {
        let program = Program::new(verb, binary("tulle")).arg(verb).flag("--helm", &self.program);
        self.says(program, arguments)
    }

    fn rollback(&self) {
        let program = Program::new("rollback", &self.program).arg("rollback").arg("tulle");
        self.says(program.flag("--namespace", SYSTEM), &[]);
    }

    #[track_caller]
    fn says(&self, program: Program, arguments: &[&str]) -> String {
        let mut program = program.flag("--kubeconfig", &self.kubeconfig).env("HOME", &self.home);
        for argument in arguments {
            program = program.arg(*argument);
        }
        let output = program.output();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {arguments:?}: {error}", program.name);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Kind and name, as the command writes them.
fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let (kind, namespace, name) =
        (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": CONTROL_PLANE, "namespace": SYSTEM},
    })
}

/// How many replicas are asked for, of which image.
async fn asked_for(caller: &Caller) -> (Value, String) {
    let mut found = caller.now(&deployment()).await.unwrap();
    let image = found["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    let repository = image.rsplit_once(':').map_or(image, |(repository, _)| repository).to_owned();
    (found["spec"]["replicas"].take(), repository)
}

fn webhooks() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "tulle-webhook"},
    })
}

/// What the API server believes of each webhook.
async fn bundles(caller: &Caller) -> Vec<Value> {
    let found = caller.now(&webhooks()).await.unwrap();
    let all = found["webhooks"].as_array().unwrap();
    all.iter().map(|webhook| webhook["clientConfig"]["caBundle"].clone()).collect()
}

/// As the control plane writes it.
async fn write_bundle(caller: &Caller, bundle: &str) {
    let (mut written, found) = (webhooks(), caller.now(&webhooks()).await.unwrap());
    let all = found["webhooks"].as_array().unwrap().iter();
    let all = all.map(|webhook| json!({"name": webhook["name"], "clientConfig": {"caBundle": bundle}}));
    written["webhooks"] = all.collect();
    caller.apply(&written).await.unwrap();
}

/// A dry run tells of an object that was changed by hand, of a pod with an older proxy, and of one that should have a proxy.
async fn tells_what_is_otherwise_in_the_cluster(server: &ApiServer, helm: &Helm) {
    let caller = server.administrator();
    let mut changed = deployment();
    let part_of = |whose: &str| json!({"app.kubernetes.io/part-of": whose});
    changed["metadata"]["labels"] = part_of("another");
    caller.apply(&changed).await.unwrap();

    // Its pods are from before it asked: no webhook is called here.
    server.namespace("shop", json!({})).await;
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        })
    };
    let asks = Namespace {
        name: "shop".to_owned(),
        labels: [(INJECT.to_owned(), "enabled".to_owned())].into(),
        ..Namespace::default()
    };
    let older = Settings {
        namespace: SYSTEM.to_owned(),
        image_repository: IMAGE.to_owned(),
        image_tag: "0.0.9".to_owned(),
        ..Settings::default()
    };
    let Decision::Inject { pod: orders, .. } = inject(&pod("orders"), &asks, &older) else {
        panic!("is injected")
    };
    caller.create(&orders).await.unwrap();
    caller.create(&pod("teller")).await.unwrap();
    server.namespace("shop", json!({(INJECT): "enabled"})).await;

    let said = helm.tulle("upgrade", &["--dry-run"]);
    let drift = format!("! Deployment {SYSTEM}/{CONTROL_PLANE}: drift: changed since it was put there");
    let place =
        "    metadata.labels.app.kubernetes.io/part-of: another in the cluster, tulle as it was put there";
    let has = |line: &str| said.lines().filter(|found| *found == line).count();
    assert_eq!((has(&drift), has(place)), (1, 1), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with(['!', '?'])).count(), 1, "{said}");
    let of = |pod: &str| {
        let start = format!("  shop/Pod/{pod} ");
        said.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{pod}: {said}"))
    };
    let image = format!("image {IMAGE}:0.0.9 → {IMAGE}:{}", env!("CARGO_PKG_VERSION"));
    assert!(of("orders").contains(&image), "{said}");
    assert!(of("teller").contains("gets a proxy"), "{said}");

    changed["metadata"]["labels"] = part_of("tulle");
    caller.apply(&changed).await.unwrap();
    for name in ["orders", "teller"] {
        caller.delete(&pod(name)).await.unwrap();
    }
    let said = helm.tulle("upgrade", &["--dry-run"]);
    assert_eq!(said.lines().count(), 1, "all is as it was: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
async fn helm_installs_upgrades_rolls_back_and_uninstalls_what_the_command_says() {
    let server = ApiServer::start().await;
    let (helm, caller) = (Helm::of(&server), server.administrator());
    let repository = format!("image.repository={IMAGE}");
    let objects = rendered(&json!({"image": {"repository": IMAGE}}));
    let names: BTreeSet<String> = objects.iter().map(name).collect();

    let said = helm.tulle("install", &["--dry-run", "--set", &repository]);
    let new = said.lines().filter_map(|line| line.strip_prefix("+ ")).map(str::to_owned);
    assert_eq!(new.collect::<BTreeSet<_>>(), names, "{said}");
    assert_eq!(caller.now(&deployment()).await.unwrap_err().code, 404, "nothing was done");

    helm.tulle("install", &["--set", &repository]);
    for object in &objects {
        caller.now(object).await.unwrap_or_else(|refused| panic!("{}: {refused}", name(object)));
    }
    assert_eq!(asked_for(caller).await, (json!(1), IMAGE.to_owned()));
    let all = objects.len();
    assert_eq!(
        helm.tulle("upgrade", &["--dry-run"]),
        format!("0 new, 0 changed, 0 gone, {all} unchanged\n"),
        "what is rendered once more is the same"
    );

    // What the control plane and people write is none of Helm's business.
    let bundle = STANDARD.encode(fs::read(server.folder().path("root.pem")).unwrap());
    write_bundle(caller, &bundle).await;
    let mesh = json!({
        "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mesh"},
        "spec": {"mtls": "strict"},
    });
    eventually("the definitions are served", async || {
        caller.apply(&mesh).await.map(drop).map_err(|refused| refused.to_string())
    })
    .await;

    tells_what_is_otherwise_in_the_cluster(&server, &helm).await;

    let two = ["--set", "controlPlane.replicas=2"];
    let said = helm.tulle("upgrade", &["--dry-run", two[0], two[1]]);
    let changed = format!("~ Deployment {SYSTEM}/{CONTROL_PLANE}");
    for line in [&*changed, "  -   replicas: 1", "  +   replicas: 2"] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    assert!(said.ends_with(&format!("0 new, 1 changed, 0 gone, {} unchanged\n", all - 1)), "{said}");
    assert_eq!(asked_for(caller).await.0, 1, "nothing was done");
    helm.tulle("upgrade", &two);
    assert_eq!(asked_for(caller).await, (json!(2), IMAGE.to_owned()), "values of before stay");
    helm.rollback();
    assert_eq!(asked_for(caller).await, (json!(1), IMAGE.to_owned()));
    let bundles = bundles(caller).await;
    assert!(!bundles.is_empty() && bundles.iter().all(|kept| *kept == *bundle), "{bundles:?}");

    let said = helm.tulle("uninstall", &["--dry-run"]);
    caller.now(&deployment()).await.expect("nothing was done");
    helm.tulle("uninstall", &[]);
    for object in &objects {
        let (name, stays) = (name(object), object["kind"] == "CustomResourceDefinition");
        let line = if stays { format!("  {name} stays") } else { format!("- {name}") };
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
        let code = caller.now(object).await.err().map(|refused| refused.code);
        assert_eq!(code, if stays { None } else { Some(404) }, "{name}");
    }

    // Who installs again finds what stayed.
    helm.tulle("install", &["--set", &repository]);
    assert_eq!(asked_for(caller).await, (json!(1), IMAGE.to_owned()));
    assert_eq!(caller.now(&mesh).await.unwrap()["spec"]["mtls"], "strict");
}
