//! `tulle inject` and `tulle uninject`: manifests in, manifests with or without proxies out.
//!
//! What a pod looks like with a proxy is the control plane's own doing (`tulle_control_plane::inject`), the same as its webhook does; only reading,
//! printing and the exit status are here. Manifests go to standard output, what there is to say of them to standard error.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tulle_control_plane::inject::manifest::{self, Document};
use tulle_control_plane::inject::{Decision, INJECT, Namespace, Settings, inject, is_injected, uninject};

use crate::output;

const EXAMPLES: &str = "\
Examples:
  tulle inject shop.yaml | kubectl apply -f -
  kubectl get deployment -o yaml | tulle inject | kubectl apply -f -
  tulle inject --injection-file injection.json a.yaml b.yaml > meshed.yaml

Pods, and Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs, PodTemplates and lists of them, get a proxy as the
webhook gives them one; everything else passes through as it is. What has a proxy already gets that of this version. Needed only where the webhook is not
to do it: pods of a namespace with the label tulle.dev/inject=enabled have a proxy by themselves.

Exit status:
  0  done; what was left as it is stands on standard error
  1  a manifest cannot be read, or asks for what cannot be
  2  wrong arguments";

const UNINJECT_EXAMPLES: &str = "\
Examples:
  tulle uninject meshed.yaml | kubectl apply -f -

Takes away what `tulle inject` or the webhook has added, and nothing else.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InjectArgs {
    /// Manifests of YAML or JSON; `-`, or none: standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The settings of injection, as the control plane has them.
    #[arg(long, value_name = "FILE")]
    injection_file: Option<PathBuf>,
    /// The namespace of what names none.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The control plane's namespace, in place of that in the settings.
    #[arg(long, value_name = "NAME")]
    control_plane_namespace: Option<String>,
    /// The proxy's image with its tag, in place of that in the settings.
    #[arg(long, value_name = "IMAGE")]
    proxy_image: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = UNINJECT_EXAMPLES)]
pub(crate) struct UninjectArgs {
    /// Manifests of YAML or JSON; `-`, or none: standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// A text of manifests, and what it is called.
struct Input {
    name: String,
    documents: Vec<Document>,
}

/// What is said of an object's pods.
struct Said {
    /// `<Kind> <namespace>/<name>`.
    object: String,
    what: String,
    is_error: bool,
}

/// Puts proxies in.
///
/// # Errors
/// What cannot be read.
pub(crate) fn run(arguments: &InjectArgs) -> Result<ExitCode> {
    let settings = settings(arguments)?;
    let inputs = read(&arguments.files)?;
    let namespaces = namespaces(&inputs);
    change(&inputs, &arguments.namespace, |object, pod| {
        let (bare, had) = match uninject(pod).filter(|_| is_injected(pod)) {
            Some(bare) => (bare, true),
            None => (pod.clone(), false),
        };
        let known = namespaces.get(&object.namespace).cloned().unwrap_or_default();
        let mut namespace = Namespace { name: object.namespace.clone(), ..known };
        // Asked for by the command itself; the pod may still say no.
        namespace.labels.insert(INJECT.to_owned(), "enabled".to_owned());
        match inject(&bare, &namespace, &settings) {
            Decision::Inject { pod, warnings } => {
                let what = if had { "has the proxy of this version" } else { "has a proxy" };
                (Some(*pod), what.to_owned(), warnings, false)
            }
            Decision::Leave { reason, message, warnings } => {
                (None, format!("left as it is ({reason}): {message}"), warnings, false)
            }
            Decision::Refuse { reason, message } => {
                (None, format!("cannot have a proxy so ({reason}): {message}"), Vec::new(), true)
            }
        }
    })
}

/// Takes proxies away.
///
/// # Errors
/// What cannot be read.
pub(crate) fn run_uninject(arguments: &UninjectArgs) -> Result<ExitCode> {
    let inputs = read(&arguments.files)?;
    change(&inputs, "default", |_, pod| match uninject(pod) {
        Some(bare) => (Some(bare), "has no proxy any more".to_owned(), Vec::new(), false),
        None => (None, "has no proxy".to_owned(), Vec::new(), false),
    })
}

fn settings(arguments: &InjectArgs) -> Result<Settings> {
    let mut settings = match &arguments.injection_file {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    if let Some(namespace) = &arguments.control_plane_namespace {
        settings.namespace.clone_from(namespace);
    }
    if let Some(image) = &arguments.proxy_image {
        // A registry may have a port.
        let tag_at = image.rfind(':').filter(|at| !image[*at..].contains('/'));
        let (repository, tag) = match (image.split_once('@'), tag_at) {
            (Some((repository, digest)), _) => {
                settings.image_digest = Some(digest.to_owned());
                (repository, None)
            }
            (None, Some(at)) => (&image[..at], Some(&image[at + 1..])),
            (None, None) => (image.as_str(), None),
        };
        settings.image_repository = repository.to_owned();
        if let Some(tag) = tag {
            settings.image_tag = tag.to_owned();
            settings.image_digest = None;
        }
    }
    settings.check().map_err(|problem| anyhow::anyhow!("the settings of injection: {problem}"))?;
    Ok(settings)
}

fn read(files: &[PathBuf]) -> Result<Vec<Input>> {
    let standard = [PathBuf::from("-")];
    let files = if files.is_empty() { &standard[..] } else { files };
    files.iter().map(|path| read_one(path)).collect()
}

fn read_one(path: &Path) -> Result<Input> {
    let (name, text) = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        ("standard input".to_owned(), text)
    } else {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| name.clone())?;
        (name, text)
    };
    let documents = manifest::documents(&text).with_context(|| name.clone())?;
    Ok(Input { name, documents })
}

/// The namespaces that are among the manifests.
fn namespaces(inputs: &[Input]) -> BTreeMap<String, Namespace> {
    let objects =
        inputs.iter().flat_map(|input| &input.documents).filter_map(|document| document.value.as_ref());
    let of = |object: &Value| -> Option<(String, Namespace)> {
        if object.get("kind")?.as_str()? != "Namespace" {
            return None;
        }
        let texts = |field: &str| -> BTreeMap<String, String> {
            let object = object.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
            let pairs = object.into_iter().flatten();
            pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        };
        let name = object.pointer("/metadata/name")?.as_str()?.to_owned();
        let (labels, annotations) = (texts("labels"), texts("annotations"));
        Some((name.clone(), Namespace { name, labels, annotations }))
    };
    objects.filter_map(of).collect()
}

/// What an object is called.
struct Object {
    kind: String,
    namespace: String,
    name: String,
}

// === impl Object ===

impl Object {
    fn of(value: &Value, pod: &str, namespace: &str) -> Self {
        // The object that has the pods: of a list, its item.
        let (mut object, mut rest, mut kind) = (value, pod, "");
        while let Some(index) = rest.strip_prefix("/items/").and_then(|at| at.split('/').next()) {
            let Some(item) = object.pointer(&format!("/items/{index}")) else { break };
            // An item need not say what the list does.
            let of_list = object.get("kind").and_then(Value::as_str).unwrap_or_default();
            kind = of_list.strip_suffix("List").unwrap_or_default();
            object = item;
            rest = &rest["/items/".len() + index.len()..];
        }
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        Self {
            kind: text("/kind").unwrap_or_else(|| kind.to_owned()),
            namespace: text("/metadata/namespace").unwrap_or_else(|| namespace.to_owned()),
            name: text("/metadata/name").or_else(|| text("/metadata/generateName")).unwrap_or_default(),
        }
    }
}

type Changed = (Option<Value>, String, Vec<String>, bool);

/// Prints all documents, their pods changed.
fn change(
    inputs: &[Input],
    namespace: &str,
    change: impl Fn(&Object, &Value) -> Changed,
) -> Result<ExitCode> {
    let (mut out, mut all) = (String::new(), Vec::new());
    for input in inputs {
        for document in &input.documents {
            let text = match &document.value {
                Some(value) => changed(input, document, value, namespace, &change, &mut all),
                None => document.text().to_owned(),
            };
            if !out.is_empty() && !text.is_empty() {
                if !out.ends_with('\n') {
                    out.push('\n');
                }
                if !text.starts_with("---") && !out.ends_with("---\n") && !out.ends_with("...\n") {
                    out.push_str("---\n");
                }
            }
            out.push_str(&text);
        }
    }
    for said in &all {
        eprintln!("{}: {}", said.object, said.what);
    }
    if all.is_empty() {
        eprintln!("there is no pod, and nothing that makes one, in {}", names(inputs));
    }
    output::print(out.strip_suffix('\n').unwrap_or(&out))?;
    Ok(if all.iter().any(|said| said.is_error) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn names(inputs: &[Input]) -> String {
    inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The text of a document with its pods changed.
fn changed(
    input: &Input,
    document: &Document,
    value: &Value,
    namespace: &str,
    change: &impl Fn(&Object, &Value) -> Changed,
    all: &mut Vec<Said>,
) -> String {
    let mut wanted = value.clone();
    for pointer in manifest::pods(value) {
        let Some(pod) = value.pointer(&pointer) else { continue };
        let object = Object::of(value, &pointer, namespace);
        let called = format!("{} {}/{}", object.kind, object.namespace, object.name);
        let (pod, what, warnings, is_error) = change(&object, pod);
        all.push(Said { object: called.clone(), what, is_error });
        let warnings = warnings.into_iter().map(|warning| Said {
            object: called.clone(),
            what: format!("warning: {warning}"),
            is_error: false,
        });
        all.extend(warnings);
        if let (Some(pod), Some(place)) = (pod, wanted.pointer_mut(&pointer)) {
            *place = pod;
        }
    }
    let (text, is_kept) = document.saying(&wanted);
    if !is_kept {
        let at = format!("{}:{}", input.name, document.first_line);
        let what = "warning: the document is written anew, without its comments, since its style does not let it be changed in place";
        all.push(Said { object: at, what: what.to_owned(), is_error: false });
    }
    text
}
