//! Real folders: what is read of them, that what happens in them is seen, and the examples of the documents.

use std::sync::mpsc;
use std::time::Duration;

use super::super::{Watch, check};
use super::*;
use crate::index::Change;
use crate::object::{Kind, Object};

#[test]
fn a_missing_folder_is_an_error_that_names_it() {
    let error = check(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[test]
fn only_configuration_is_read_from_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    for inner in ["sub", ".hidden"] {
        std::fs::create_dir(dir.path().join(inner)).unwrap();
    }
    write("a.yaml", &service("a", 1));
    write("sub/b.yml", &service("b", 1));
    for ignored in [".c.yaml", "c.yaml~", ".c.yaml.swp", "#c.yaml#", "README.md", ".hidden/c.yaml"] {
        write(ignored, "kind: [");
    }
    assert_eq!(check(dir.path()).unwrap().findings, []);
    assert_eq!(check(&dir.path().join(".hidden")).unwrap().findings.len(), 1);
    let empty = tempfile::tempdir().unwrap();
    assert!(check(empty.path()).unwrap().findings[0].message.contains("no configuration"));
    std::os::unix::fs::symlink("nowhere.yaml", dir.path().join("broken.yaml")).unwrap();
    let found = check(dir.path()).unwrap().findings;
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn what_has_a_name_that_is_not_text_is_told_and_left_out() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
    std::fs::write(path(b"a.yaml"), service("a", 1)).unwrap();
    for (name, text) in [(&b"b\xff.yaml"[..], service("b", 1)), (b".b\xff.yaml", "kind: [".to_owned())] {
        std::fs::write(path(name), text).unwrap();
    }
    std::fs::write(path(b"README\xff"), "text").unwrap();
    std::fs::create_dir(path(b"sub\xff")).unwrap();
    let (mut folder, read) = Folder::open(dir.path()).unwrap();
    assert_eq!(read.changes.len(), 1, "{:?}", read.changes);
    let told: Vec<String> = read.findings.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    for (told, name) in told.iter().zip(["b\u{fffd}.yaml", "sub\u{fffd}"]) {
        let file = dir.path().join(name).display().to_string();
        assert!(told.starts_with(&format!("{file}: warning: the name is not UTF-8")), "{told}");
        assert!(told.ends_with("(rename it)"), "{told}");
    }
    for name in [&b"b\xff.yaml"[..], b"sub\xff"] {
        std::fs::rename(path(name), path(&name.iter().copied().filter(u8::is_ascii).collect::<Vec<_>>()))
            .unwrap();
    }
    let read = folder.reread();
    assert_eq!((read.changes.len(), read.findings.len()), (1, 0), "{read:?}");
}

/// The names of Services that were applied and deleted, as they come from a real folder.
fn watched(dir: &Path) -> (Watch, mpsc::Receiver<Vec<(String, bool)>>) {
    let (folder, _) = Folder::open(dir).unwrap();
    let (sender, receiver) = mpsc::channel();
    let watch = Watch::start(folder, move |read| {
        let changes = read.changes.iter().map(|change| match change {
            Change::Apply(object, _) => {
                assert!(matches!(**object, Object::Service(_)));
                (object.key().name.to_string(), true)
            }
            Change::Delete(key) => {
                assert_eq!(key.kind, Kind::Service);
                (key.name.to_string(), false)
            }
        });
        let _test_over = sender.send(changes.collect());
    })
    .unwrap();
    // The first reading after the watch is in place.
    assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), []);
    (watch, receiver)
}

fn next(receiver: &mpsc::Receiver<Vec<(String, bool)>>) -> Vec<(String, bool)> {
    receiver.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
fn an_edit_is_seen_and_so_is_a_new_folder() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf");
    std::fs::create_dir(&conf).unwrap();
    let (watch, changes) = watched(&conf);
    std::fs::write(conf.join("a.yaml"), service("a", 1)).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    // Written beside and renamed, as editors do.
    std::fs::write(conf.join(".a.yaml.new"), service("a", 2)).unwrap();
    std::fs::rename(conf.join(".a.yaml.new"), conf.join("a.yaml")).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    std::fs::create_dir(conf.join("sub")).unwrap();
    std::fs::write(conf.join("sub/b.yaml"), service("b", 1)).unwrap();
    assert_eq!(next(&changes), [("default/b".to_owned(), true)]);
    std::fs::write(conf.join("sub/b.yaml"), service("b", 2)).unwrap();
    assert_eq!(next(&changes), [("default/b".to_owned(), true)]);
    std::fs::remove_file(conf.join("a.yaml")).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), false)]);
    drop(watch);
}

#[test]
fn a_mounted_configmap_that_is_swapped_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, conf.join(name)).unwrap();
    for (version, port) in [("..v1", 1), ("..v2", 2)] {
        std::fs::create_dir(conf.join(version)).unwrap();
        std::fs::write(conf.join(version).join("a.yaml"), service("a", port)).unwrap();
    }
    link("..v1", "..data");
    link("..data/a.yaml", "a.yaml");
    let (watch, changes) = watched(conf);
    link("..v2", "..data_tmp");
    std::fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    drop(watch);
}

#[test]
fn a_link_to_a_watched_folder_takes_no_watch_along() {
    let dir = tempfile::tempdir().unwrap();
    let (_watch, receiver) = watched(dir.path());
    std::fs::write(dir.path().join("a.yaml"), service("a", 1)).unwrap();
    assert_eq!(next(&receiver), [("default/a".to_owned(), true)]);
    let link = dir.path().join("again");
    std::os::unix::fs::symlink(".", &link).unwrap();
    // Its file is read under both names.
    assert_eq!(next(&receiver), []);
    std::fs::remove_file(&link).unwrap();
    assert_eq!(next(&receiver), []);
    // Without a watch, this would be read 30 s later.
    std::fs::write(dir.path().join("b.yaml"), service("b", 1)).unwrap();
    assert_eq!(next(&receiver), [("default/b".to_owned(), true)]);
}

#[test]
fn what_a_link_to_the_folders_own_parent_shows_is_seen_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf");
    std::fs::create_dir(&conf).unwrap();
    std::os::unix::fs::symlink("..", conf.join("up")).unwrap();
    let (_watch, receiver) = watched(&conf);
    // Without a watch by the link's name, this would be read 30 s later.
    std::fs::write(dir.path().join("a.yaml"), service("a", 1)).unwrap();
    assert_eq!(next(&receiver), [("default/a".to_owned(), true)]);
    // Without the link, the parent still tells that the folder is another.
    std::fs::remove_file(conf.join("up")).unwrap();
    assert_eq!(next(&receiver), [("default/a".to_owned(), false)]);
    let new = dir.path().join("new");
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join("b.yaml"), service("b", 1)).unwrap();
    std::fs::rename(&conf, dir.path().join("old")).unwrap();
    std::fs::rename(&new, &conf).unwrap();
    let mut seen = next(&receiver);
    // Between the two there may have been no folder.
    if seen.is_empty() {
        seen = next(&receiver);
    }
    assert_eq!(seen, [("default/b".to_owned(), true)]);
}

#[test]
fn a_folder_that_is_replaced_is_followed_and_one_that_is_gone_is_served_on() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf");
    for (name, port) in [("one", 1), ("two", 2)] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("a.yaml"), service("a", port)).unwrap();
    }
    std::os::unix::fs::symlink("one", &conf).unwrap();
    let (watch, changes) = watched(&conf);
    std::os::unix::fs::symlink("two", dir.path().join("new")).unwrap();
    std::fs::rename(dir.path().join("new"), &conf).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    // Gone: told, and nothing is deleted.
    std::fs::remove_file(&conf).unwrap();
    assert_eq!(next(&changes), []);
    // Back, with other contents.
    std::fs::write(dir.path().join("one/a.yaml"), service("a", 3)).unwrap();
    std::os::unix::fs::symlink("one", &conf).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    drop(watch);
}

fn yaml_blocks(page: &str) -> Vec<&str> {
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(text, _)| text).collect()
}

#[test]
fn the_examples_of_the_reference_are_without_fault() {
    let texts = yaml_blocks(include_str!("../../../../docs/reference/yaml.md"));
    assert_eq!(texts.len(), 8);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), texts.join("---\n")).unwrap();
    assert_eq!(check(dir.path()).unwrap().findings, []);
}

#[test]
fn each_example_of_routing_is_without_fault_beside_its_services() {
    let texts = yaml_blocks(include_str!("../../../../docs/routing.md"));
    assert!(texts.len() > 15);
    for example in &texts[1..] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("services.yaml"), texts[0]).unwrap();
        std::fs::write(dir.path().join("example.yaml"), example).unwrap();
        let checked = check(dir.path()).unwrap();
        assert_eq!(checked.findings, [], "{example}");
        assert_eq!(checked.routes.is_empty(), example.contains("kind: ReferenceGrant"), "{example}");
    }
}
