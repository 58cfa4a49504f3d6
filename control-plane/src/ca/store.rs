//! The authority's files in the state folder.
//!
//! | file | mode | holds |
//! | --- | --- | --- |
//! | `ca-key.pem` | 0600 | the issuing key |
//! | `ca.pem` | 0644 | the issuing certificate, those above it, every root of the trust bundle |
//! | `token-key.pem` | 0600 | the key that signs join tokens |
//! | `grants.json` | 0600 | the services that identities may register for |
//!
//! Keys are never written but with mode 0600 from the first byte on, and never read with more.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tulle_certs::TrustDomain;
use tulle_certs::issue::{self, Authority, AuthorityError, ROOT_LIFETIME};
use tulle_certs::token::JoinTokens;

use super::{CaError, StoredTokens};

const CA_KEY: &str = "ca-key.pem";
const CA_CERTIFICATES: &str = "ca.pem";
const TOKEN_KEY: &str = "token-key.pem";
pub(super) const GRANTS: &str = "grants.json";

/// Loads the authority, or makes one where there is neither key nor certificate.
pub(super) fn authority(dir: &Path, domain: &TrustDomain, now: SystemTime) -> Result<Authority, CaError> {
    let (key_path, certificates_path) = (dir.join(CA_KEY), dir.join(CA_CERTIFICATES));
    match (read_key(&key_path)?, read(&certificates_path)?) {
        (Some(key), Some(certificates)) => {
            Authority::from_pem(&key, &certificates, domain, now).map_err(|why| in_authority(dir, why))
        }
        (Some(_), None) => Err(CaError::Half { present: key_path, missing: certificates_path }),
        (None, Some(_)) => Err(CaError::Half { present: certificates_path, missing: key_path }),
        (None, None) => {
            make_dir(dir)?;
            let authority =
                Authority::generate(domain, ROOT_LIFETIME, now).map_err(|why| in_authority(dir, why))?;
            write(&certificates_path, authority.to_pem().as_bytes(), 0o644)?;
            write(&key_path, authority.key().to_pem().as_bytes(), 0o600)?;
            tracing::info!(path = %certificates_path.display(), "made a new root");
            Ok(authority)
        }
    }
}

/// Loads the token key, or makes one.
pub(super) fn tokens(dir: &Path) -> Result<JoinTokens, CaError> {
    let path = dir.join(TOKEN_KEY);
    let in_tokens = |why| CaError::Tokens { path: path.clone(), why };
    if let Some(key) = read_key(&path)? {
        return JoinTokens::from_pem(&key).map_err(in_tokens);
    }
    let tokens = JoinTokens::generate().map_err(in_tokens)?;
    write(&path, tokens.key().to_pem().as_bytes(), 0o600)?;
    Ok(tokens)
}

/// What minting needs, of an existing folder.
pub(super) fn stored_tokens(dir: &Path) -> Result<StoredTokens, CaError> {
    let absent = |path: &Path| CaError::Io {
        path: path.to_owned(),
        why: std::io::Error::new(
            ErrorKind::NotFound,
            "not found; is this the state folder of a control plane that has been started once?",
        ),
    };
    let path = dir.join(TOKEN_KEY);
    let key = read_key(&path)?.ok_or_else(|| absent(&path))?;
    let tokens = JoinTokens::from_pem(&key).map_err(|why| CaError::Tokens { path, why })?;
    let (key_path, path) = (dir.join(CA_KEY), dir.join(CA_CERTIFICATES));
    let key = read_key(&key_path)?.ok_or_else(|| absent(&key_path))?;
    let certificates = read(&path)?.ok_or_else(|| absent(&path))?;
    let stored = issue::stored_root(&key, &certificates).map_err(|why| in_authority(dir, why))?;
    let (pin, trust_domain) = stored;
    Ok(StoredTokens { tokens, pin, trust_domain })
}

/// The grants as they were written, if any were made.
pub(super) fn grants(dir: &Path) -> Result<Option<Vec<u8>>, CaError> {
    let path = dir.join(GRANTS);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(&path)(e)),
    }
}

pub(super) fn write_grants(dir: &Path, text: &str) -> Result<(), CaError> {
    write(&dir.join(GRANTS), text.as_bytes(), 0o600)
}

pub(super) fn in_authority(dir: &Path, why: AuthorityError) -> CaError {
    let name = if matches!(why, AuthorityError::Key(_)) { CA_KEY } else { CA_CERTIFICATES };
    CaError::Authority { path: dir.join(name), why }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CaError + '_ {
    move |why| CaError::Io { path: path.to_owned(), why }
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path)(e)),
    }
}

/// Reads a key, refusing one that group or others can touch.
fn read_key(path: &Path) -> Result<Option<zeroize::Zeroizing<String>>, CaError> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path)(e)),
    };
    let mode = file.metadata().map_err(io(path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CaError::Permissions { path: path.to_owned(), mode });
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    std::io::Read::read_to_string(&mut file, &mut text).map_err(io(path))?;
    Ok(Some(text))
}

fn make_dir(dir: &Path) -> Result<(), CaError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))
}

/// Writes a file whole or not at all: beside it first, then renamed.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io(&beside)(e)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(io(&beside))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io(&beside))?;
    fs::rename(&beside, path).map_err(io(path))
}
