//! Programs that somebody else wrote: Python packages of `tests/peers/requirements.txt`.

use std::path::{Path, PathBuf};

use crate::process::Program;

/// A script of `tests/peers`, to be run by the Python that `TULLE_TEST_PYTHON` names.
///
/// `None`, said loudly, where there is none: a machine with only Rust has none.
///
/// # Panics
/// Under `CI`, where it must be there; and if it lacks a package.
pub fn python(script: &str) -> Option<Program> {
    let Some(python) = std::env::var_os("TULLE_TEST_PYTHON").map(PathBuf::from).filter(|path| path.is_file())
    else {
        assert!(
            std::env::var_os("CI").is_none(),
            "TULLE_TEST_PYTHON names no Python; `.ci/run install` makes one"
        );
        eprintln!(
            "\n*** NOT TESTED: {script} needs Python with tests/peers/requirements.txt; make a venv and name its \
             Python in TULLE_TEST_PYTHON ***\n"
        );
        return None;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
    assert!(path.is_file(), "there is no {}", path.display());
    // The name of a log file must tell two scripts of one test apart.
    let name = script.trim_end_matches(".py").to_owned();
    Some(Program::new(name, python).arg("-u").arg(path))
}
