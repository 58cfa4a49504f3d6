//! PEM as people have it: CRLF, a byte order mark, text around the blocks, spaces at line ends, several
//! certificates in any order.
//!
//! An error names the block by its number and line and says what is wrong with it. Used for everything that
//! comes from a file or over the wire as PEM. Private keys are decoded into memory that is wiped.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::x509;

const CERTIFICATE: &str = "CERTIFICATE";

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is wrong with a PEM text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// There is no block of the wanted kind at all.
    #[error("no {wanted} block found{hint}")]
    Missing {
        /// The label of the block that was looked for.
        wanted: &'static str,
        /// What was found in its place, or empty.
        hint: String,
    },
    /// One block is bad.
    #[error("block {index} ({label}, line {line}): {why}")]
    Block {
        /// Which block, from 1.
        index: usize,
        /// Line of its BEGIN, from 1.
        line: usize,
        /// The label between the dashes.
        label: String,
        /// What is wrong with it.
        why: String,
    },
    /// The certificates do not make one chain.
    #[error("the certificates do not make one chain: {0}")]
    Chain(String),
}

/// One decoded block.
pub struct Block {
    /// The label, such as `CERTIFICATE`.
    pub label: String,
    /// The decoded content, wiped when dropped.
    pub der: Zeroizing<Vec<u8>>,
    /// Which block of the text, from 1.
    pub index: usize,
    /// Line of its BEGIN, from 1.
    pub line: usize,
}

impl std::fmt::Debug for Block {
    /// Shows label and place, never the content, which may be a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("label", &self.label).field("line", &self.line).finish_non_exhaustive()
    }
}

impl Block {
    /// An error about this block.
    pub(crate) fn error(&self, why: impl Into<String>) -> PemError {
        PemError::Block { index: self.index, line: self.line, label: self.label.clone(), why: why.into() }
    }
}

/// Every block of `text`, in order. Text outside of blocks is passed over.
pub fn blocks(text: &str) -> Result<Vec<Block>, PemError> {
    let mut found = Vec::new();
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(label) = marker(line, "-----BEGIN ") else { continue };
        let (index, line) = (found.len() + 1, at + 1);
        let error =
            |why: String| PemError::Block { index, line, label: label.chars().take(40).collect(), why };
        let mut body = Zeroizing::new(String::new());
        loop {
            let Some((_, inner)) = lines.next() else {
                return Err(error(format!("the line -----END {label}----- is missing")));
            };
            if let Some(end) = marker(inner, "-----END ") {
                if end == label {
                    break;
                }
                return Err(error(format!("ends as {end:?}")));
            }
            if marker(inner, "-----BEGIN ").is_some() {
                return Err(error(format!("another block begins before -----END {label}-----")));
            }
            if inner.trim_start().starts_with("Proc-Type:") && inner.contains("ENCRYPTED") {
                return Err(error("it is encrypted; decrypt it first (openssl pkey)".into()));
            }
            if inner.contains(':') {
                continue; // a header of RFC 1421
            }
            body.extend(inner.chars().filter(|c| !c.is_whitespace()));
        }
        let der = BASE64.decode(body.as_bytes()).map_err(|e| error(format!("not base64: {e}")))?;
        if der.is_empty() {
            return Err(error("it is empty".into()));
        }
        found.push(Block { label: label.to_owned(), der: Zeroizing::new(der), index, line });
    }
    Ok(found)
}

/// No file of keys, certificates or tokens is larger, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The text of a file of keys, certificates or tokens, in memory that is wiped.
///
/// # Errors
/// When it cannot be read, is not UTF-8, or is larger than 1 MiB.
pub fn read_file(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        let why = "it is larger than 1 MiB: not a file of keys, certificates or tokens";
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(text)
}

/// The label of a BEGIN or END line.
fn marker<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    line.trim().strip_prefix(prefix)?.strip_suffix("-----")
}

/// Every certificate of `text`, in the order found, each checked to be X.509. At least one.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let blocks = blocks(text)?;
    let mut certificates = Vec::new();
    for block in &blocks {
        if !matches!(block.label.as_str(), CERTIFICATE | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE") {
            continue;
        }
        x509::parse(&block.der).map_err(|why| block.error(why))?;
        certificates.push(CertificateDer::from(block.der.to_vec()));
    }
    if certificates.is_empty() {
        return Err(missing(CERTIFICATE, &blocks));
    }
    Ok(certificates)
}

pub(crate) fn missing(wanted: &'static str, blocks: &[Block]) -> PemError {
    let hint = match blocks.first() {
        None => " (nor any other PEM block)".to_owned(),
        Some(block) => format!(" (found {} instead)", block.label.chars().take(40).collect::<String>()),
    };
    PemError::Missing { wanted, hint }
}

/// One PEM block, lines of 64 characters, LF.
pub fn encode(label: &str, der: &[u8]) -> String {
    let base64 = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut text = String::with_capacity(base64.len() + base64.len() / 64 + 2 * label.len() + 40);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// One certificate as PEM.
pub fn encode_certificate(certificate: &CertificateDer<'_>) -> String {
    encode(CERTIFICATE, certificate)
}

/// Puts certificates into the order of TLS (RFC 8446 §4.4.2): the leaf, then each one's issuer. Duplicates
/// are dropped; what lies on no path from the leaf (further roots) comes last, in the order given.
///
/// The leaf is the one certificate that is no CA; if all are CAs, the one that issued none of the others (a root
/// only if there is nothing else).
pub fn order_chain(
    certificates: Vec<CertificateDer<'static>>,
) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let leaf = find_leaf(&certificates)?;
    Ok(chain_from(leaf, certificates))
}

fn find_leaf(certificates: &[CertificateDer<'static>]) -> Result<CertificateDer<'static>, PemError> {
    let chain_error = |why: &str| PemError::Chain(why.to_owned());
    let mut leaves: Vec<&CertificateDer<'static>> = Vec::new();
    for certificate in certificates {
        if !x509::parse(certificate).map_err(PemError::Chain)?.is_ca() && !leaves.contains(&certificate) {
            leaves.push(certificate);
        }
    }
    if leaves.is_empty() {
        let only_roots = certificates.iter().all(|certificate| x509::is_root(certificate));
        for certificate in certificates {
            let above = certificates.iter().any(|other| x509::issued(certificate, other));
            if !above && (only_roots || !x509::is_root(certificate)) && !leaves.contains(&certificate) {
                leaves.push(certificate);
            }
        }
    }
    match leaves.as_slice() {
        [leaf] => Ok((*leaf).clone()),
        [] => Err(chain_error("there is no leaf among them")),
        _ => Err(chain_error("there are several leaves; keep one, with the certificates of its issuers")),
    }
}

/// `leaf`, its issuers upwards, then the rest without duplicates.
pub(crate) fn chain_from(
    leaf: CertificateDer<'static>,
    certificates: Vec<CertificateDer<'static>>,
) -> Vec<CertificateDer<'static>> {
    let mut rest: Vec<CertificateDer<'static>> = Vec::with_capacity(certificates.len());
    for certificate in certificates {
        if certificate != leaf && !rest.contains(&certificate) {
            rest.push(certificate);
        }
    }
    let mut chain = vec![leaf];
    while let Some(last) = chain.last() {
        match rest.iter().position(|candidate| x509::issued(candidate, last)) {
            Some(at) => {
                let issuer = rest.remove(at);
                chain.push(issuer);
            }
            None => break,
        }
    }
    chain.append(&mut rest);
    chain
}

#[cfg(test)]
mod tests;
