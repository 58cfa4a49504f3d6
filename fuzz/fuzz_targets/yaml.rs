//! What people write: whatever it is, it is read or told, with the place; a change is taken in as if all were read anew; and a
//! proxy accepts everything that is made of it.
//!
//! 0xff (which no text has) ends the text as it first was and begins what it was changed to.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tulle_api::ResourceType;
use tulle_control_plane::finding::Finding;
use tulle_control_plane::index::Index;
use tulle_control_plane::model::{Model, Settings, findings};
use tulle_control_plane::source::Folder;
use tulle_proxy::control::decode::{Decoded, decode, rejections};

fuzz_target!(|data: &[u8]| {
    let mut folder = Folder::empty(Path::new("conf"));
    let mut index = Index::default();
    let mut model = Model::build(&index, Settings::default());
    // What is served on is told where it last stood.
    let mut lines = 0;
    for text in data.split(|byte| *byte == 0xff).take(3) {
        // YAML takes a bare CR for the end of a line too (YAML 1.2.2 §5.4).
        lines = text.split(|byte| matches!(byte, b'\n' | b'\r')).count().max(lines);
        let name = if text.starts_with(b"{") { "conf/a.json" } else { "conf/a.yaml" };
        let files = || [(name.to_owned(), Ok(text.to_vec()))].into();
        let read = folder.update(files());
        check(&read.findings, lines);
        index.change(read.changes);
        let dirty = index.take_dirty();
        model = model.next(&index, &dirty);
        assert!(model == Model::build(&index, Settings::default()), "a change is not all that it changes");
        check(&findings(&index, &Settings::default()), lines);
        accepted(&model);

        let again = folder.update(files());
        assert!(again.changes.is_empty(), "read twice, and changed");
        assert_eq!(again.findings, read.findings);
    }
});

fn check(findings: &[Finding], lines: usize) {
    for finding in findings {
        assert!(!finding.message.is_empty() && !finding.to_string().contains('\n'), "{finding:?}");
        if let Some(line) = finding.line {
            assert!((1..=lines).contains(&(line as usize)), "{finding} in a text of {lines} lines");
        }
        assert!(finding.column.is_none_or(|column| column > 0), "{finding}");
    }
}

/// The proxy takes everything that the control plane sends.
fn accepted(model: &Model) {
    for resource_type in ResourceType::ALL {
        for name in model.names(resource_type) {
            let names = match resource_type {
                ResourceType::Routes => vec![format!("shop/{name}"), format!("default/{name}")],
                _ => vec![name.to_string()],
            };
            for name in names {
                let encoded = model.get(resource_type, &name).expect("its name is listed");
                let decoded = decode(resource_type.type_url(), &name, &encoded.bytes);
                assert!(decoded.is_ok(), "{resource_type} {name}: {decoded:?}");
                if let Ok(Decoded::Routes(routes)) = decoded {
                    assert_eq!(rejections(&name, &routes), [], "{name}");
                }
            }
        }
    }
}
