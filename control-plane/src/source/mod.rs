//! Where objects come from: a folder of YAML, or a Kubernetes API server.
//!
//! A source reads, says what changed ([`crate::index::Change`]) and what is wrong ([`Finding`]); it never decides what
//! that means to a proxy. One broken document takes nothing down: the last good version of what it held is served on.
//!
//! - `yaml`: text → documents, with the line and column of every field;
//! - `decode`: documents → objects; `strict`: what is said where a value does not fit;
//! - `folder`: files → what changed, keeping the last good version of what is broken;
//! - `kubernetes`: an API server's lists and watches → what changed, by the same `decode`;
//! - `mesh_file`: the Mesh that holds where the source has none;
//! - `watch`: the thread that looks when something happens, and now and then anyway.

mod decode;
mod folder;
pub mod kubernetes;
mod mesh_file;
mod strict;
mod watch;
pub(crate) mod yaml;

use std::path::Path;

pub(crate) use self::decode::versions;
pub use self::folder::{Bytes, Folder, FolderError, Read};
pub use self::mesh_file::{MeshFileError, read_mesh};
pub use self::watch::Watch;
use crate::finding::{Finding, Severity};
use crate::index::Index;
use crate::model::{
    PolicyStatus, RouteStatus, Settings, access_statuses, findings, policy_statuses, route_statuses,
};

/// A source that is read for as long as this lives.
#[derive(Debug)]
pub enum Source {
    /// A folder, watched.
    Folder(Watch),
    /// An API server, watched.
    Kubernetes(kubernetes::Cluster),
}

/// What there is to say of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Everything that is wrong with it, sorted by file and line.
    pub findings: Vec<Finding>,
    /// The state of each route that is not refused.
    pub routes: Vec<RouteStatus>,
    /// The state of each policy that is not refused.
    pub policies: Vec<PolicyStatus>,
}

/// Looks a folder over: what `tulle check --config-dir` prints, by the same code that the control plane runs.
///
/// # Errors
/// The folder is missing or cannot be read.
pub fn check(dir: &Path) -> Result<Checked, FolderError> {
    let (_, read) = Folder::open(dir)?;
    let mut index = Index::default();
    let empty = read.changes.is_empty() && read.findings.is_empty();
    index.change(read.changes);
    let mut all = findings(&index, &Settings::default());
    if empty {
        all.push(Finding {
            file: Some(dir.display().to_string()),
            line: None,
            column: None,
            severity: Severity::Warning,
            object: None,
            field: None,
            message: "there is no configuration in this folder".to_owned(),
            hint: Some("it is read from *.yaml, *.yml and *.json, here and one folder down".to_owned()),
        });
    }
    all.extend(read.findings);
    all.sort();
    all.dedup();
    let mut policies = policy_statuses(&index);
    policies.extend(access_statuses(&index));
    Ok(Checked { findings: all, routes: route_statuses(&index), policies })
}

/// What a folder with one file of this text would give.
#[cfg(test)]
pub(crate) fn read_text(text: &str) -> Read {
    let files = [("conf/a.yaml".to_owned(), Ok(text.as_bytes().to_vec()))];
    Folder::empty(Path::new("conf")).update(files.into())
}

/// The value that a text of one document is.
#[cfg(test)]
pub(crate) fn parse_one(text: &str) -> serde_json::Value {
    yaml::parse(yaml::Chunk { first_line: 1, text }).unwrap().unwrap().value
}

#[cfg(test)]
mod tests;
