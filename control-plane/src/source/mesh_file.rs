//! The Mesh that holds where the source has none: a file with one, read once at the start.
//!
//! In a cluster it comes from the chart's values. A chart cannot bring an object together with the kind that it is of, and a mesh that is
//! meant to be strict must not be lax until somebody has run a second command.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::Folder;
use crate::finding::{Finding, Severity};
use crate::index::{Change, Stored};
use crate::object::{Mesh, Object};

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MeshFileError {
    /// It cannot be read.
    #[error("--mesh-file {}: {source} (it must be there, and readable, when the control plane starts)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in it is wrong: nothing of it may be left out unseen.
    #[error("--mesh-file: {0}")]
    Wrong(Box<Finding>),
    /// It holds something else.
    #[error("--mesh-file {}: expected one Mesh named `mesh`, of policy.tulle.dev/v1alpha1, and nothing else", .0.display())]
    NoMesh(PathBuf),
}

/// Reads the file.
///
/// # Errors
/// It cannot be read, does not hold one Mesh and nothing else, or an error is found in that.
pub fn read_mesh(path: &Path) -> Result<Stored<Mesh>, MeshFileError> {
    let bytes =
        std::fs::read(path).map_err(|source| MeshFileError::Read { path: path.to_owned(), source })?;
    let files = BTreeMap::from([(path.display().to_string(), Ok(bytes))]);
    let read = Folder::empty(path).update(files);
    let wrong = read.findings.into_iter().find(|finding| finding.severity == Severity::Error);
    if let Some(finding) = wrong {
        return Err(MeshFileError::Wrong(Box::new(finding)));
    }
    let [Change::Apply(object, origin)] = &read.changes[..] else {
        return Err(MeshFileError::NoMesh(path.to_owned()));
    };
    match &**object {
        Object::Mesh(mesh) => Ok(Stored { object: mesh.clone(), origin: origin.clone() }),
        _ => Err(MeshFileError::NoMesh(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use crate::kinds::Mtls;
    use crate::object::{Kind, NamespacedName, ObjectKey};

    const MESH: &str = "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\n";

    fn read(text: &str) -> Result<Stored<Mesh>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.yaml");
        std::fs::write(&path, text).unwrap();
        read_mesh(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn one_mesh_is_read() {
        let mesh = read(&format!("{MESH}spec: {{mtls: strict}}\n")).unwrap();
        assert_eq!(mesh.object.mtls, Mtls::Strict);
    }

    #[test]
    fn it_holds_for_as_long_as_the_source_has_none() {
        let mode = |index: &Index| index.mesh().unwrap().object.mtls;
        let mut index = Index::default();
        index.set_default_mesh(read(&format!("{MESH}spec: {{mtls: strict}}\n")).unwrap());
        assert_eq!(mode(&index), Mtls::Strict);
        let key = ObjectKey { kind: Kind::Mesh, name: NamespacedName::new("", "mesh") };
        assert!(!index.holds(&key), "it is no object of the source's");
        index.change(super::super::read_text(&format!("{MESH}spec: {{mtls: permissive}}\n")).changes);
        assert_eq!(mode(&index), Mtls::Permissive);
        index.delete(&key);
        assert_eq!(mode(&index), Mtls::Strict);
        index.reset([]);
        assert_eq!(mode(&index), Mtls::Strict);
    }

    #[test]
    fn what_is_wrong_names_the_file_and_the_place() {
        let error = read(&format!("{MESH}spec: {{mtls: strict, networks: [10.0.0.0]}}\n")).unwrap_err();
        assert!(error.contains("mesh.yaml:4") && error.contains("spec.networks[0]"), "{error}");
        let error = read(&format!("{MESH}spec: {{mtls: maybe}}\n")).unwrap_err();
        assert!(error.contains("mesh.yaml:4"), "{error}");
        for other in ["", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"] {
            let error = read(other).unwrap_err();
            assert!(error.contains("mesh.yaml") && error.starts_with("--mesh-file"), "{error}");
        }
        let error = read_mesh(Path::new("/nowhere/mesh.yaml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/mesh.yaml"), "{error}");
    }
}
