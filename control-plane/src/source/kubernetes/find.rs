//! Where the API server is, and as whom it is asked, by what `kubectl` and Helm go by, in their order.
//!
//! A kubeconfig comes first: the files that `KUBECONFIG` names, or else `.kube/config` in the folder that `HOME` names. Where neither can be used, it is the
//! service account of the pod. That is what [`kube::Config::infer`] does too, but for one thing: where `HOME` is not set, that looks a home up in the system's
//! database of users, by libraries that are loaded for it (nsswitch.conf(5)), which ends a program that is linked statically. Here nothing is looked up.
//!
//! Called by [the source](super::connect) and by `tulle check`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kube::Config;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::tap::printable;

/// What is shown of a name: a message is no place for all of a long one.
const SHOWN: usize = 80;
/// Contexts that are named.
const NAMED: usize = 10;

/// Nothing says where an API server is in a way that can be used.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No kubeconfig is named.
    #[error("no kubeconfig is named: set KUBECONFIG to its path, or HOME to the folder with .kube/config")]
    Unnamed,
    /// A kubeconfig that cannot be used.
    #[error("{place}: {error}")]
    Kubeconfig {
        /// The file, or all of them.
        place: String,
        /// What is wrong with it.
        error: Box<KubeconfigError>,
    },
    /// A kubeconfig that says nothing.
    #[error(
        "{place}: no context is in it, and so no cluster: name another kubeconfig, or let your provider's command write this one"
    )]
    Empty {
        /// The file, or all of them.
        place: String,
    },
    /// A context that is not there.
    #[error("{place}: there is no context `{context}`; there are: {known}")]
    Context {
        /// The file, or all of them.
        place: String,
        /// What was asked for, or what is said to be current.
        context: String,
        /// Those that are there.
        known: String,
    },
    /// No context is asked for, and none is current.
    #[error(
        "{place}: no context is current: name one, or make one so by `kubectl config use-context`; there are: {known}"
    )]
    NotCurrent {
        /// The file, or all of them.
        place: String,
        /// Those that are there.
        known: String,
    },
    /// No kubeconfig that can be used, and no service account either.
    #[error("{kubeconfig}; and there is no service account of a pod: {service_account}")]
    Nowhere {
        /// What keeps a kubeconfig from being used.
        kubeconfig: Box<Self>,
        /// What keeps a service account from being used.
        service_account: InClusterError,
    },
}

/// How to reach the API server of this context of the kubeconfig; without one, of its current context, or else of the cluster whose pod this runs in. `file`: this
/// kubeconfig, and nothing else.
///
/// # Errors
/// There is nothing to go by, or what there is cannot be used.
pub async fn configuration(context: Option<&str>, file: Option<&Path>) -> Result<Config, FindError> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    if let Some(file) = file {
        return of_kubeconfig(&[file.to_owned()], &options).await;
    }
    let files = files(env::var_os("KUBECONFIG"), env::var_os("HOME"));
    let mut config = match of_kubeconfig(&files, &options).await {
        Ok(config) => config,
        // Who names a context does not mean a service account.
        Err(error) if context.is_some() => return Err(error),
        Err(error) => Config::incluster()
            .map_err(|service_account| FindError::Nowhere { kubeconfig: Box::new(error), service_account })?,
    };
    config.apply_debug_overrides();
    Ok(config)
}

/// The files of a kubeconfig, by what the two variables say.
fn files(kubeconfig: Option<OsString>, home: Option<OsString>) -> Vec<PathBuf> {
    let named = kubeconfig.as_deref().map(env::split_paths).into_iter().flatten();
    let named: Vec<PathBuf> = named.filter(|path| !path.as_os_str().is_empty()).collect();
    if !named.is_empty() {
        return named;
    }
    let home = home.filter(|home| !home.is_empty()).map(PathBuf::from);
    home.map(|home| home.join(".kube/config")).into_iter().collect()
}

/// Of several files, the first that says something holds ([`Kubeconfig::merge`]).
async fn of_kubeconfig(files: &[PathBuf], options: &KubeConfigOptions) -> Result<Config, FindError> {
    let wrong = |place: String| move |error| FindError::Kubeconfig { place, error: Box::new(error) };
    let all: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let mut merged: Option<Kubeconfig> = None;
    for (file, place) in files.iter().zip(&all) {
        let read = Kubeconfig::read_from(file).map_err(wrong(place.clone()))?;
        merged = Some(match merged {
            Some(before) => before.merge(read).map_err(wrong(place.clone()))?,
            None => read,
        });
    }
    let merged = merged.ok_or(FindError::Unnamed)?;
    has_context(&merged, options, &all.join(", "))?;
    Config::from_custom_kubeconfig(merged, options).await.map_err(wrong(all.join(", ")))
}

/// Whether the context that is asked for is there: who is told that it is not has to know what there is.
fn has_context(merged: &Kubeconfig, options: &KubeConfigOptions, place: &str) -> Result<(), FindError> {
    let place = place.to_owned();
    if merged.contexts.is_empty() {
        return Err(FindError::Empty { place });
    }
    let known = || {
        let mut known: Vec<String> =
            merged.contexts.iter().take(NAMED).map(|context| shown(&context.name)).collect();
        if let Some(more) = merged.contexts.len().checked_sub(NAMED).filter(|more| *more > 0) {
            known.push(format!("{more} more"));
        }
        known.join(", ")
    };
    let asked =
        options.context.as_ref().or_else(|| merged.current_context.as_ref().filter(|name| !name.is_empty()));
    match asked {
        Some(name) if merged.contexts.iter().any(|context| context.name == *name) => Ok(()),
        Some(name) => Err(FindError::Context { place, context: shown(name), known: known() }),
        None => Err(FindError::NotCurrent { place, known: known() }),
    }
}

/// A name as a message shows it: its beginning, if it is long, and nothing that would steer a terminal.
pub(super) fn shown(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", printable(&name[..end])),
        None => printable(name),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    /// A kubeconfig with one context, cluster and user, all of that name.
    fn kubeconfig(folder: &Path, name: &str) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": format!("http://{name}.example:8080")}}],
            "users": [{"name": name, "user": {"token": name}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": name}}],
        });
        let path = folder.join(name);
        // JSON is YAML.
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    fn of(context: &str) -> KubeConfigOptions {
        KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() }
    }

    #[test]
    fn a_home_is_taken_from_its_variable_alone() {
        let files = |kubeconfig: Option<&str>, home: Option<&str>| {
            let files = files(kubeconfig.map(OsString::from), home.map(OsString::from));
            files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        for (kubeconfig, home, expected) in [
            (Some("/a"), Some("/me"), &["/a"][..]),
            (Some(":/a::b:"), Some("/me"), &["/a", "b"]),
            (Some(""), Some("/me"), &["/me/.kube/config"]),
            (Some(":"), Some("/me"), &["/me/.kube/config"]),
            (None, Some("/me"), &["/me/.kube/config"]),
            (Some("/a"), None, &["/a"]),
            (None, Some(""), &[]),
            (None, None, &[]),
        ] {
            assert_eq!(files(kubeconfig, home), expected, "{kubeconfig:?}, {home:?}");
        }
    }

    #[tokio::test]
    async fn of_several_files_the_first_holds_and_the_others_add_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["one", "two"].map(|name| kubeconfig(folder.path(), name));
        let current = of_kubeconfig(&files, &KubeConfigOptions::default()).await.unwrap();
        assert_eq!(
            (current.cluster_url.host(), &*current.default_namespace),
            (Some("one.example"), "one"),
            "the first names the current context"
        );
        let other = of_kubeconfig(&files, &of("two")).await.unwrap();
        assert_eq!((other.cluster_url.host(), &*other.default_namespace), (Some("two.example"), "two"));
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_said_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let good = kubeconfig(folder.path(), "good");
        let missing = folder.path().join("missing");
        let broken = folder.path().join("broken");
        fs::write(&broken, "clusters: [").unwrap();
        let empty = folder.path().join("empty");
        fs::write(&empty, "").unwrap();
        for (files, options, place) in [
            (vec![good.clone(), missing.clone()], KubeConfigOptions::default(), &missing),
            (vec![good.clone(), broken.clone()], KubeConfigOptions::default(), &broken),
            (vec![good.clone()], of("none"), &good),
            (vec![empty.clone()], KubeConfigOptions::default(), &empty),
        ] {
            let error = of_kubeconfig(&files, &options).await.unwrap_err();
            assert!(error.to_string().starts_with(&format!("{}: ", place.display())), "{error}");
        }
        let error = of_kubeconfig(&[], &KubeConfigOptions::default()).await.unwrap_err().to_string();
        assert!(error.contains("KUBECONFIG") && error.contains("HOME"), "{error}");
    }

    #[tokio::test]
    async fn of_a_context_that_is_not_there_is_said_which_are() {
        let folder = tempfile::tempdir().unwrap();
        let one = kubeconfig(folder.path(), "one");
        let said = async |file: &PathBuf, options: KubeConfigOptions| {
            of_kubeconfig(std::slice::from_ref(file), &options).await.unwrap_err().to_string()
        };
        let place = one.display();
        assert_eq!(
            said(&one, of("two")).await,
            format!("{place}: there is no context `two`; there are: one")
        );
        // A name that is no name is not told in full.
        let long = said(&one, of(&"x\u{1b}".repeat(5000))).await;
        assert!(long.len() < 1000 && !long.contains('\u{1b}') && long.ends_with("there are: one"), "{long}");
        // None is current.
        let text = fs::read_to_string(&one).unwrap().replace("\"current-context\":\"one\",", "");
        let many = folder.path().join("many");
        fs::write(&many, text).unwrap();
        let error = said(&many, KubeConfigOptions::default()).await;
        assert!(error.contains("no context is current") && error.ends_with("there are: one"), "{error}");
    }
}
