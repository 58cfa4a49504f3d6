use std::time::{Duration, SystemTime};

use super::*;
use crate::id::TrustDomain;
use crate::issue::{Authority, ROOT_LIFETIME};
use crate::key::{PrivateKey, csr};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn authority() -> Authority {
    Authority::generate(&TrustDomain::default(), ROOT_LIFETIME, now()).unwrap()
}

/// A leaf and its root.
fn chain() -> Vec<CertificateDer<'static>> {
    let ca = authority();
    let key = PrivateKey::generate().unwrap();
    let id = crate::id::control_plane_id(&TrustDomain::default());
    let request = csr(&key, None).unwrap();
    ca.issue(&request, &id, Duration::from_secs(3600), now()).unwrap().chain_with_root()
}

#[test]
fn pem_as_people_have_it() {
    let chain = chain();
    let plain: String = chain.iter().map(|der| encode_certificate(der)).collect();
    let no_newline = plain.trim_end().to_owned();
    let variants = [
        plain.clone(),
        no_newline,
        plain.clone() + "\n\n",
        plain.replace('\n', "\r\n"),
        format!("\u{feff}{plain}"),
        format!("subject=/CN=x\nissuer: y\n{}\nthe end", plain.replace("-----END", "  -----END")),
        plain.lines().map(|line| format!("  {line}\t \n")).collect(),
        plain.replace("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nName: value\n\n"),
        plain.replace("=\n", "\n"),
        plain.replace("CERTIFICATE", "X509 CERTIFICATE"),
        format!("{}{plain}", encode("PRIVATE KEY", b"secret")),
    ];
    for text in variants {
        assert_eq!(certificates(&text).unwrap(), chain, "{text}");
    }
}

#[test]
fn errors_name_block_and_line() {
    let chain = chain();
    let good = encode_certificate(&chain[0]);
    let lines = good.lines().count();
    let cases = [
        (format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n"), "line -----END CERTIFICATE----- is missing"),
        (format!("{good}-----BEGIN CERTIFICATE-----\n{good}"), "another block begins"),
        (format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n-----END PRIVATE KEY-----\n"), "ends as"),
        (format!("{good}-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), "empty"),
        (format!("{good}{}", good.replacen("MII", "M*I", 1)), "base64"),
        (format!("{good}{}", encode("CERTIFICATE", b"not der")), "X.509"),
        (
            format!("{good}{}", encode("CERTIFICATE", &[&chain[1][..], &[0]].concat())),
            "follow the certificate",
        ),
        (format!("{good}-----BEGIN X-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END X-----\n"), "encrypted"),
    ];
    for (text, word) in cases {
        let error = certificates(&text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert!(error.contains("block 2") && error.contains(&format!("line {}", lines + 1)), "{error}");
    }
    let error = certificates("nothing here").unwrap_err().to_string();
    assert!(error.contains("no CERTIFICATE block"), "{error}");
    let error = certificates(&encode("PRIVATE KEY", b"x")).unwrap_err().to_string();
    assert!(error.contains("found PRIVATE KEY"), "{error}");
}

#[test]
fn any_order_becomes_the_order_of_tls() {
    let chain = chain();
    let stranger = authority().root().clone();
    let reversed: Vec<_> = chain.iter().rev().cloned().collect();
    assert_eq!(order_chain(reversed.clone()).unwrap(), chain);
    let twice = [reversed, chain.clone()].concat();
    assert_eq!(order_chain(twice).unwrap(), chain);
    let with_stranger = vec![stranger.clone(), chain[1].clone(), chain[0].clone()];
    assert_eq!(order_chain(with_stranger).unwrap(), [chain.clone(), vec![stranger.clone()]].concat());
    assert_eq!(order_chain(vec![stranger.clone()]).unwrap(), std::slice::from_ref(&stranger));
    let other = self::chain();
    assert!(matches!(order_chain([chain, other].concat()), Err(PemError::Chain(_))));
    assert!(matches!(order_chain(vec![stranger, authority().root().clone()]), Err(PemError::Chain(_))));
    assert!(matches!(order_chain(vec![]), Err(PemError::Chain(_))));
}

#[test]
fn random_text_never_panics() {
    let good = encode_certificate(&chain()[0]);
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize
    };
    for _ in 0..300 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random() % 4 {
            let at = random() % bytes.len();
            bytes[at] = b"\r\n-: A=*"[random() % 8];
        }
        let _ = certificates(&String::from_utf8(bytes).unwrap());
    }
}

#[test]
fn a_file_without_an_end_is_not_read_to_its_end() {
    let error = read_file(Path::new("/dev/zero")).unwrap_err();
    assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0xff]).unwrap();
    assert_eq!(read_file(file.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    std::fs::write(file.path(), "text").unwrap();
    assert_eq!(read_file(file.path()).unwrap().as_str(), "text");
}
