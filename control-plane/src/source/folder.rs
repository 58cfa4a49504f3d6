//! A folder of YAML: what is in force, given what is and what was in the files.
//!
//! Decides which version of an object holds. In force is what the files say; where a document is broken, or a file empty, what
//! was last read of it; where two files speak of the same object, the first by path. Pure but for [`Folder::open`] and
//! [`Folder::reread`], which read the files; never watches (that is [`super::watch`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::decode::{self, Content, Contents, Entry};
use crate::finding::{Finding, Origin, Severity};
use crate::index::Change;
use crate::object::{Object, ObjectKey};

/// A larger file is refused; it is not configuration.
const MAX_FILE: u64 = 16 << 20;

/// A folder that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("configuration folder {}: {source} (it must be there, and readable, when the control plane starts)", path.display())]
pub struct FolderError {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What was seen in a folder.
#[derive(Debug, Default)]
pub struct Read {
    /// Since the time before, in order.
    pub changes: Vec<Change>,
    /// Everything that is wrong now, sorted.
    pub findings: Vec<Finding>,
}

/// A folder, as last read.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// What is in force.
    objects: BTreeMap<ObjectKey, Held>,
    /// Text of each file, so that an untouched one is not parsed again.
    files: BTreeMap<String, File>,
}

#[derive(Debug, Clone)]
struct Held {
    object: Object,
    origin: Origin,
    /// False for what stands in for a version that never was good.
    good: bool,
}

#[derive(Debug)]
struct File {
    /// None: could not be read.
    text: Option<Vec<u8>>,
    contents: Contents,
}

/// What reading a file gave.
pub type Bytes = Result<Vec<u8>, io::Error>;

// === impl Folder ===

impl Folder {
    /// Opens a folder and reads it once.
    ///
    /// # Errors
    /// It is missing, is no folder, or cannot be listed.
    pub fn open(path: &Path) -> Result<(Self, Read), FolderError> {
        let files = list(path).map_err(|source| FolderError { path: path.to_owned(), source })?;
        let mut folder = Self::empty(path);
        let read = folder.update(files);
        Ok((folder, read))
    }

    /// A folder of which nothing is read yet: for who reads the files in another way, and for tests.
    pub fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), objects: BTreeMap::new(), files: BTreeMap::new() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the folder again. If it cannot be listed, what was last read of it stays in force.
    pub fn reread(&mut self) -> Read {
        match list(&self.path) {
            Ok(files) => self.update(files),
            Err(error) => {
                let mut findings: Vec<Finding> = self.findings();
                findings.push(Finding {
                    file: Some(self.path.display().to_string()),
                    line: None,
                    column: None,
                    severity: Severity::Error,
                    object: None,
                    field: None,
                    message: format!(
                        "the folder cannot be read: {error}; what was last read of it is served on"
                    ),
                    hint: Some("put the folder back, or make it readable".to_owned()),
                });
                findings.sort();
                Read { changes: Vec::new(), findings }
            }
        }
    }

    /// Takes in the files as they are now: path, as findings show it, and content.
    pub fn update(&mut self, files: BTreeMap<String, Bytes>) -> Read {
        // A folder that cannot be listed keeps its files.
        let lost = |name: &String| {
            let path = Path::new(name).parent();
            path.and_then(|parent| files.get(parent.to_str()?)).is_some_and(Result::is_err)
        };
        self.files.retain(|name, _| files.contains_key(name) || lost(name));
        for (name, bytes) in files {
            self.take_in(name, bytes);
        }
        let (objects, duplicates) = self.in_force();
        let changes = difference(&self.objects, &objects);
        self.objects = objects;
        let mut findings = self.findings();
        findings.extend(duplicates);
        findings.sort();
        findings.dedup();
        Read { changes, findings }
    }

    fn take_in(&mut self, name: String, bytes: Bytes) {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                let contents = misnamed(&name);
                self.files.insert(name, File { text: None, contents });
                return;
            }
            Err(error) => {
                let contents = unreadable(&name, format!("cannot be read: {error}"), None);
                self.files.insert(name, File { text: None, contents });
                return;
            }
        };
        let untouched = self.files.get(&name).and_then(|file| file.text.as_ref()) == Some(&bytes);
        if untouched {
            return;
        }
        let contents = match std::str::from_utf8(&bytes) {
            Ok("") => empty(&name),
            Ok(text) => decode::decode(&name, text),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let newlines = before.split(|byte| *byte == b'\n').count();
                let line = u32::try_from(newlines).ok();
                unreadable(&name, "is not UTF-8 text".to_owned(), line)
            }
        };
        let text = Some(bytes);
        self.files.insert(name, File { text, contents });
    }

    fn findings(&self) -> Vec<Finding> {
        let files = self.files.values();
        files.flat_map(|file| file.contents.findings.iter().cloned()).collect()
    }

    /// What holds, and complaints about what is written twice.
    fn in_force(&self) -> (BTreeMap<ObjectKey, Held>, Vec<Finding>) {
        let mut objects: BTreeMap<ObjectKey, Held> = BTreeMap::new();
        let mut duplicates = Vec::new();
        let entries = self.files.values().flat_map(|file| &file.contents.entries);
        let good: BTreeSet<&ObjectKey> = entries
            .filter(|entry| matches!(entry.content, Content::Good(_)))
            .map(|entry| &entry.key)
            .collect();
        for (name, file) in &self.files {
            let mut seen: BTreeSet<&ObjectKey> = BTreeSet::new();
            for entry in &file.contents.entries {
                // What is written well elsewhere holds, rather than what stood once where it is now written badly.
                if matches!(entry.content, Content::Refused { .. }) && good.contains(&entry.key) {
                    seen.insert(&entry.key);
                    continue;
                }
                let Some(held) = self.held(entry) else {
                    continue;
                };
                seen.insert(&entry.key);
                match objects.get(&entry.key) {
                    Some(first) => duplicates.push(duplicate(entry, first)),
                    None => {
                        objects.insert(entry.key.clone(), held);
                    }
                }
            }
            if file.contents.unreadable {
                let before = self.objects.iter();
                let lost = before.filter(|(key, held)| *held.origin.file == **name && !seen.contains(key));
                for (key, held) in lost {
                    objects.entry(key.clone()).or_insert_with(|| held.clone());
                }
            }
        }
        for (name, file) in &self.files {
            let entries = file.contents.entries.iter();
            for entry in entries.filter(|entry| matches!(entry.content, Content::Unknown)) {
                let before = self.objects.get(&entry.key);
                if let Some(held) = before.filter(|held| *held.origin.file == **name) {
                    objects.entry(entry.key.clone()).or_insert_with(|| held.clone());
                }
            }
        }
        (objects, duplicates)
    }

    /// The version of an entry that holds.
    fn held(&self, entry: &Entry) -> Option<Held> {
        let new =
            |object: &Object, good: bool| Held { object: object.clone(), origin: entry.origin.clone(), good };
        match &entry.content {
            Content::Good(object) => Some(new(object, true)),
            // The old version, but the new place: that is where people will look.
            Content::Refused { fallback } => {
                let before = self.objects.get(&entry.key).filter(|held| held.good);
                let before = before.map(|held| new(&held.object, true));
                before.or_else(|| fallback.as_ref().map(|object| new(object, false)))
            }
            Content::Unknown => None,
        }
    }
}

fn unreadable(file: &str, message: String, line: Option<u32>) -> Contents {
    Contents {
        entries: Vec::new(),
        unreadable: true,
        findings: vec![Finding {
            file: Some(file.to_owned()),
            line,
            column: None,
            severity: Severity::Error,
            object: None,
            field: None,
            message: format!("the file {message}; what was last read from it is served on"),
            hint: None,
        }],
    }
}

/// Most likely somebody is about to write it (`program > file` empties it first): what it held must not go meanwhile, a
/// policy least of all.
fn empty(file: &str) -> Contents {
    let mut contents = unreadable(file, "is empty".to_owned(), None);
    for finding in &mut contents.findings {
        finding.severity = Severity::Warning;
        finding.hint = Some("remove the file if what it held is to go".to_owned());
    }
    contents
}

/// It cannot be told apart by what is shown of it, nor be named on a command line: it is not read.
fn misnamed(file: &str) -> Contents {
    let finding = Finding {
        file: Some(file.to_owned()),
        line: None,
        column: None,
        severity: Severity::Warning,
        object: None,
        field: None,
        message: "the name is not UTF-8 (U+FFFD stands for what is not): what is there is left out"
            .to_owned(),
        hint: Some("rename it".to_owned()),
    };
    Contents { findings: vec![finding], ..Contents::default() }
}

fn duplicate(entry: &Entry, first: &Held) -> Finding {
    let mark = entry.origin.find("metadata.name");
    let first_mark = first.origin.find("metadata.name");
    let first_line = first_mark.map_or_else(String::new, |mark| format!(":{}", mark.line));
    Finding {
        file: Some(entry.origin.file.to_string()),
        line: mark.map(|mark| mark.line),
        column: mark.map(|mark| mark.column),
        severity: Severity::Error,
        object: Some(entry.key.to_string()),
        field: Some("metadata.name".to_owned()),
        message: format!(
            "{} is written in {}{first_line} already, which holds; this one is left out",
            entry.key, first.origin.file
        ),
        hint: Some("remove one, or rename it".to_owned()),
    }
}

fn difference(before: &BTreeMap<ObjectKey, Held>, after: &BTreeMap<ObjectKey, Held>) -> Vec<Change> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let mut changes: Vec<Change> = gone.cloned().map(Change::Delete).collect();
    for (key, held) in after {
        let same = before.get(key).is_some_and(|old| {
            old.object == held.object
                && old.origin.file == held.origin.file
                && old.origin.base == held.origin.base
                && old.origin.positions == held.origin.positions
        });
        if !same {
            let object = Box::new(held.object.clone());
            changes.push(Change::Apply(object, Some(held.origin.clone())));
        }
    }
    changes
}

/// Every file that is configuration, in the folder and its folders, by path.
///
/// Names that begin with a dot (a ConfigMap's `..data`, an editor's swap file) and end with a tilde are not.
/// Symbolic links are followed: a mounted ConfigMap is made of them.
fn list(dir: &Path) -> io::Result<BTreeMap<String, Bytes>> {
    let mut files = BTreeMap::new();
    list_into(dir, true, &mut files)?;
    Ok(files)
}

fn list_into(dir: &Path, with_folders: bool, files: &mut BTreeMap<String, Bytes>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let (is_named, name) = (name.to_str().is_some(), name.to_string_lossy());
        if !is_visible(&name) {
            continue;
        }
        let path = entry.path();
        let shown = path.display().to_string();
        let metadata = fs::metadata(&path);
        if !is_named {
            let is_folder = metadata.is_ok_and(|metadata| metadata.is_dir());
            if (is_folder && with_folders) || (!is_folder && is_configuration(&name)) {
                files.insert(shown, Err(io::ErrorKind::InvalidFilename.into()));
            }
            continue;
        }
        match metadata {
            Ok(metadata) if metadata.is_dir() => {
                if with_folders && let Err(error) = list_into(&path, false, files) {
                    files.insert(shown, Err(error));
                }
            }
            Ok(metadata) if is_configuration(&name) => {
                files.insert(shown, read(&path, &metadata));
            }
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
            Err(error) if is_configuration(&name) => {
                files.insert(shown, Err(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read(path: &Path, metadata: &fs::Metadata) -> Bytes {
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    fs::read(path)
}

/// Whether a name may be configuration, or a folder of it.
pub(super) fn is_visible(name: &str) -> bool {
    !name.starts_with(['.', '#']) && !name.ends_with('~')
}

fn is_configuration(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|text| text.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}
