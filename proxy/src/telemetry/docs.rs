//! Reference pages made from tables in the code (tests only).

use std::path::Path;

/// Fails unless `docs/reference/<page>` is `text`. With `TULLE_UPDATE_DOCS` set, writes it.
pub(crate) fn compare(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(page);
    if std::env::var_os("TULLE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "docs/reference/{page} is not what the code says; run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-proxy`"
    );
}
