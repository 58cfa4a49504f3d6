//! Reading a folder of YAML: what is kept (`kept`) and told (`told`) of it, its text (`text`), and real folders (`folders`).

mod folders;
mod kept;
mod text;
mod told;

use std::collections::BTreeMap;
use std::path::Path;

use super::Read;
use super::folder::{Bytes, Folder};
use crate::finding::Finding;
use crate::index::Index;
use crate::object::NamespacedName;

/// A folder that exists only here, with the index that follows it.
struct World {
    folder: Folder,
    index: Index,
    files: BTreeMap<String, String>,
}

impl World {
    fn new(files: &[(&str, &str)]) -> (Self, Vec<Finding>) {
        let mut world = Self {
            folder: Folder::empty(Path::new("conf")),
            index: Index::default(),
            files: BTreeMap::new(),
        };
        for (name, text) in files {
            world.files.insert((*name).to_owned(), (*text).to_owned());
        }
        let found = world.update();
        (world, found)
    }

    fn write(&mut self, name: &str, text: &str) -> Vec<Finding> {
        self.files.insert(name.to_owned(), text.to_owned());
        self.update()
    }

    fn remove(&mut self, name: &str) -> Vec<Finding> {
        self.files.remove(name);
        self.update()
    }

    fn update(&mut self) -> Vec<Finding> {
        let files = self.files.iter();
        let files = files.map(|(name, text)| (name.clone(), Ok(text.clone().into_bytes())));
        self.take_in(files.collect())
    }

    fn take_in(&mut self, files: BTreeMap<String, Bytes>) -> Vec<Finding> {
        let Read { changes, findings } = self.folder.update(files);
        self.index.change(changes);
        findings
    }

    /// The first port of the Service `default/<name>`: what the tests change to tell versions apart.
    fn port(&self, name: &str) -> Option<u16> {
        let service = self.index.service(&NamespacedName::new("default", name))?;
        service.ports.first().map(|port| port.number)
    }
}

fn service(name: &str, port: u16) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: {port}\n")
}

fn lines(found: &[Finding]) -> Vec<(&str, u32)> {
    found.iter().map(|finding| (finding.field.as_deref().unwrap_or(""), finding.line.unwrap_or(0))).collect()
}
