use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateSigningRequest, DnType, KeyPair, KeyUsagePurpose as Usage};
use x509_parser::extensions::GeneralName;

use super::*;
use crate::creds::Creds;
use crate::key::csr;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn web() -> SpiffeId {
    SpiffeId::new(&domain(), "shop", "web").unwrap()
}

fn authority() -> Authority {
    Authority::generate(&domain(), ROOT_LIFETIME, now()).unwrap()
}

fn own_csr() -> (String, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    (csr(&key, None).unwrap(), key)
}

#[test]
fn a_leaf_says_what_it_should_and_no_more() {
    let ca = authority();
    let (request, key) = own_csr();
    let issued = ca.issue(&request, &web(), HOUR, now()).unwrap();
    assert_eq!((issued.not_before, issued.not_after), (now() - BACKDATE, now() + HOUR));
    assert_eq!(issued.chain.len(), 1);
    assert_eq!(&issued.root, ca.root());
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let parsed = x509::parse(&issued.chain[0]).unwrap();
    assert_eq!((parsed.not_before(), parsed.not_after()), (issued.not_before, issued.not_after));
    assert_eq!(parsed.spki(), key.public_key());
    assert!(!leaf.is_ca());
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical, "X509-SVID: critical, since the subject is empty");
    assert_eq!(san.value.general_names, [GeneralName::URI(web().as_str())]);
    assert_eq!(leaf.subject().iter().count(), 0);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let again = ca.issue(&request, &web(), HOUR, now()).unwrap();
    let (_, other) = x509_parser::parse_x509_certificate(&again.chain[0]).unwrap();
    assert_ne!(leaf.raw_serial(), other.raw_serial());
    assert!(leaf.raw_serial().len() <= 20);
}

#[test]
fn the_request_has_no_say() {
    let ca = authority();
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::new(vec!["bank.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
    params.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/admin").unwrap());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Usage::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::Any];
    params.distinguished_name.push(DnType::CommonName, "admin");
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let issued = ca.issue(&request, &web(), HOUR, now()).unwrap();
    let creds = Creds::new(issued.chain.clone(), key, Arc::new(ca.bundle().clone()), now()).unwrap();
    assert_eq!(creds.id(), &web());
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    assert!(!leaf.is_ca() && leaf.subject().iter().count() == 0);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names.len(), 1);
}

#[test]
fn lifetimes_are_capped_by_the_issuer() {
    let ca = Authority::generate(&domain(), HOUR, now()).unwrap();
    let (request, _) = own_csr();
    let issue = |lifetime, at| ca.issue(&request, &web(), lifetime, at);
    assert_eq!(issue(24 * HOUR, now()).unwrap().not_after, ca.not_after());
    assert_eq!(issue(Duration::MAX, now()).unwrap().not_after, ca.not_after());
    assert_eq!(issue(MIN_LIFETIME, now()).unwrap().not_after, now() + MIN_LIFETIME);
    assert!(matches!(issue(Duration::from_secs(1), now()), Err(IssueError::TooShort(_))));
    let error = issue(HOUR, now() + HOUR).unwrap_err();
    assert!(matches!(error, IssueError::IssuerExpires(_)) && !error.is_callers_fault());
    assert!(issue(HOUR, SystemTime::UNIX_EPOCH).is_ok(), "clocks at zero do not panic");
    // A fresh root is back-dated too, so that a leaf is never older than its issuer.
    let issued = issue(HOUR, now()).unwrap();
    assert!(x509::parse(ca.root()).unwrap().not_before() <= issued.not_before);
    let elsewhere = SpiffeId::parse("spiffe://elsewhere.example/ns/shop/sa/web").unwrap();
    let error = ca.issue(&request, &elsewhere, HOUR, now()).unwrap_err();
    assert!(matches!(error, IssueError::OtherTrustDomain { .. }));
}

fn request_of(algorithm: &'static SignatureAlgorithm) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let request: CertificateSigningRequest = CertificateParams::default().serialize_request(&key).unwrap();
    request.pem().unwrap()
}

#[test]
fn keys_of_requests() {
    let ca = authority();
    let issue = |request: &str| ca.issue(request, &web(), HOUR, now()).map(|_| ());
    assert_eq!(issue(&request_of(&rcgen::PKCS_ECDSA_P256_SHA256)), Ok(()));
    assert_eq!(issue(&request_of(&rcgen::PKCS_ECDSA_P384_SHA384)), Ok(()));
    for weak in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let error = issue(&request_of(weak)).unwrap_err();
        assert!(matches!(error, IssueError::WeakKey(_)) && error.is_callers_fault(), "{error}");
        assert!(error.to_string().contains("P-256"), "{error}");
    }
}

#[test]
fn bad_requests_are_refused() {
    let ca = authority();
    let (request, key) = own_csr();
    let issue = |request: &str| ca.issue(request, &web(), HOUR, now()).unwrap_err();
    let der = pem::blocks(&request).unwrap().remove(0).der;
    for at in [der.len() - 1, der.len() / 2, 40] {
        let mut broken = der.to_vec();
        broken[at] ^= 1;
        let error = issue(&pem::encode("CERTIFICATE REQUEST", &broken));
        assert!(error.is_callers_fault(), "{at}: {error}");
    }
    // Somebody else's public key, whose private half the sender does not hold.
    let mut stolen = der.to_vec();
    let victim = PrivateKey::generate().unwrap();
    let at = stolen.windows(65).position(|window| window == key.point()).unwrap();
    stolen[at..at + 65].copy_from_slice(victim.point());
    assert_eq!(issue(&pem::encode("CERTIFICATE REQUEST", &stolen)), IssueError::Signature);
    for (text, word) in [
        (String::new(), "no CERTIFICATE REQUEST"),
        (pem::encode("CERTIFICATE", &der), "found CERTIFICATE"),
        (pem::encode("CERTIFICATE REQUEST", b"rubbish"), "PKCS#10"),
        (pem::encode("CERTIFICATE REQUEST", &[&der[..], &[0]].concat()), "bytes follow"),
        ("x".repeat(MAX_PEM + 1), "longer"),
    ] {
        let error = issue(&text);
        assert!(matches!(error, IssueError::Request(_)) && error.to_string().contains(word), "{error}");
    }
    assert!(ca.issue(&request.replace('\n', "\r\n"), &web(), HOUR, now()).is_ok());
    assert!(
        ca.issue(
            &request.replace("BEGIN C", "BEGIN NEW C").replace("END C", "END NEW C"),
            &web(),
            HOUR,
            now()
        )
        .is_ok()
    );
}

/// An issuing CA under `root`, as a company would hand it out.
fn intermediate(
    root: &Authority,
    change: impl FnOnce(&mut CertificateParams),
) -> (PrivateKey, CertificateDer<'static>) {
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Issuing CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![Usage::KeyCertSign];
    params.not_before = (now() - HOUR).into();
    params.not_after = (now() + HOUR * 24 * 30).into();
    change(&mut params);
    let certificate = params.signed_by(&key, &root.issuer).unwrap().der().clone();
    (key, certificate)
}

fn pem_of(certificates: &[&CertificateDer<'static>]) -> String {
    certificates.iter().map(|der| pem::encode_certificate(der)).collect()
}

#[test]
fn a_stored_root_is_the_same_authority() {
    let ca = authority();
    let again = Authority::from_pem(&ca.key().to_pem(), &ca.to_pem(), &domain(), now()).unwrap();
    assert_eq!(again.bundle(), ca.bundle());
    assert_eq!(again.not_after(), ca.not_after());
    assert_eq!(stored_root(&ca.key().to_pem(), &ca.to_pem()).unwrap(), (ca.pin().unwrap(), Some(domain())));
    let (request, key) = own_csr();
    let issued = again.issue(&request, &web(), HOUR, now()).unwrap();
    assert!(Creds::new(issued.chain, key, Arc::new(ca.bundle().clone()), now()).is_ok());
}

#[test]
fn a_given_intermediate_issues_chains_up_to_its_root() {
    let root = authority();
    let further = authority();
    let (key, certificate) = intermediate(&root, |_| {});
    for certificates in [
        pem_of(&[&certificate, root.root()]),
        pem_of(&[root.root(), &certificate]).replace('\n', "\r\n"),
        pem_of(&[further.root(), root.root(), &certificate, &certificate]),
    ] {
        let ca = Authority::from_pem(&key.to_pem(), &certificates, &domain(), now()).unwrap();
        assert_eq!(ca.root(), root.root());
        let (request, leaf) = own_csr();
        let issued = ca.issue(&request, &web(), HOUR * 24 * 90, now()).unwrap();
        assert_eq!(issued.chain.len(), 2);
        assert_eq!(issued.not_after, now() + HOUR * 24 * 30, "capped by the intermediate");
        // Proxies that know the root only accept it.
        assert!(Creds::new(issued.chain.clone(), leaf, Arc::new(root.bundle().clone()), now()).is_ok());
        assert_eq!(stored_root(&key.to_pem(), &certificates).unwrap(), (root.pin().unwrap(), None));
        let (chain, bundle) = split_chain(&issued.to_pem(), &domain()).unwrap();
        assert_eq!((chain, &bundle), (issued.chain, ca.bundle()), "with whoever else is trusted");
        let stored = Authority::from_pem(&key.to_pem(), &ca.to_pem(), &domain(), now()).unwrap();
        assert_eq!(stored.bundle(), ca.bundle());
    }
    let ca = Authority::from_pem(
        &key.to_pem(),
        &pem_of(&[further.root(), &certificate, root.root()]),
        &domain(),
        now(),
    );
    assert_eq!(ca.unwrap().bundle().roots(), [root.root().clone(), further.root().clone()]);
}

#[test]
fn unusable_authorities_are_refused_at_the_start() {
    let root = authority();
    let open = |key: &PrivateKey, certificates: &[&CertificateDer<'static>]| {
        Authority::from_pem(&key.to_pem(), &pem_of(certificates), &domain(), now()).unwrap_err()
    };
    let (key, certificate) = intermediate(&root, |_| {});
    assert!(matches!(
        open(&PrivateKey::generate().unwrap(), &[&certificate, root.root()]),
        AuthorityError::OtherKey(2)
    ));
    assert!(matches!(open(&key, &[&certificate]), AuthorityError::NoRoot(_)));
    assert!(matches!(open(&key, &[&certificate, authority().root()]), AuthorityError::NoRoot(_)));
    let (key, certificate) = intermediate(&root, |params| params.is_ca = IsCa::ExplicitNoCa);
    assert!(matches!(open(&key, &[&certificate, root.root()]), AuthorityError::NotCa(_)));
    let (key, certificate) = intermediate(&root, |params| params.key_usages = vec![Usage::DigitalSignature]);
    assert!(matches!(open(&key, &[&certificate, root.root()]), AuthorityError::NotCa(_)));
    let (key, certificate) = intermediate(&root, |params| params.not_after = (now() - HOUR / 2).into());
    let error = open(&key, &[&certificate, root.root()]);
    assert!(
        matches!(error, AuthorityError::NotValidNow { .. }) && error.to_string().contains("renew"),
        "{error}"
    );
    let (key, certificate) = intermediate(&root, |params| params.not_before = (now() + HOUR).into());
    let error = open(&key, &[&certificate, root.root()]);
    assert!(
        matches!(error, AuthorityError::NotValidNow { .. }) && error.to_string().contains("clock"),
        "{error}"
    );
    // A CA that has let another issue, though it may not.
    let (key, narrow) = intermediate(&root, |_| {});
    let above = pem_of(&[&narrow, root.root()]);
    let above = Authority::from_pem(&key.to_pem(), &above, &domain(), now()).unwrap();
    let (key, certificate) =
        intermediate(&above, |params| params.distinguished_name.push(DnType::CommonName, "Below"));
    let error = open(&key, &[&certificate, &narrow, root.root()]);
    assert!(matches!(error, AuthorityError::PathLength { allowed: 0, below: 1, .. }), "{error}");
    // A CA that may only issue for e-mail.
    let (key, certificate) = intermediate(&root, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    });
    assert!(matches!(open(&key, &[&certificate, root.root()]), AuthorityError::Unusable(_)));
    for error in [
        Authority::from_pem("", "", &domain(), now()).unwrap_err(),
        Authority::from_pem(&root.key().to_pem(), "", &domain(), now()).unwrap_err(),
    ] {
        assert!(error.to_string().starts_with("certificate authority: "), "{error}");
    }
}

#[test]
fn a_root_of_another_kind_of_key_serves() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        let ca = Authority::from_pem(&key.serialize_pem(), &root, &domain(), now()).unwrap();
        let (request, leaf) = own_csr();
        let issued = ca.issue(&request, &web(), HOUR, now()).unwrap();
        assert!(
            Creds::new(issued.chain, leaf, Arc::new(ca.bundle().clone()), now()).is_ok(),
            "{algorithm:?}"
        );
        let again = Authority::from_pem(&ca.key().to_pem(), &ca.to_pem(), &domain(), now()).unwrap();
        assert_eq!(again.bundle(), ca.bundle());
    }
}

#[test]
fn an_intermediate_under_a_companys_root_of_another_kind_serves() {
    for above in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        for below in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let (root_key, key) =
                (KeyPair::generate_for(above).unwrap(), KeyPair::generate_for(below).unwrap());
            let ca = |name: &str| {
                let mut params = CertificateParams::default();
                params.distinguished_name = DistinguishedName::new();
                params.distinguished_name.push(DnType::CommonName, name);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params
            };
            let root = ca("Company").self_signed(&root_key).unwrap();
            let issuer = Issuer::from_ca_cert_der(root.der(), root_key).unwrap();
            let intermediate = ca("Issuing").signed_by(&key, &issuer).unwrap();
            let certificates = intermediate.pem() + &root.pem();
            let ca = Authority::from_pem(&key.serialize_pem(), &certificates, &domain(), now()).unwrap();
            let (request, leaf) = own_csr();
            let issued = ca.issue(&request, &web(), HOUR, now()).unwrap();
            let creds = Creds::new(issued.chain, leaf, Arc::new(ca.bundle().clone()), now());
            assert!(creds.is_ok(), "{above:?} {below:?}: {creds:?}");
        }
    }
}

#[test]
fn answers_without_leaf_or_root_are_refused() {
    let ca = authority();
    let (request, _) = own_csr();
    let issued = ca.issue(&request, &web(), HOUR, now()).unwrap();
    let leaf = pem::encode_certificate(&issued.chain[0]);
    assert!(matches!(split_chain(&[&leaf], &domain()), Err(BundleError::Empty(_))));
    assert!(split_chain(&[ca.to_pem()], &domain()).is_err());
    assert!(split_chain::<&str>(&[], &domain()).is_err());
    // All in one text, in the wrong order, is fine.
    assert!(split_chain(&[ca.to_pem() + &leaf], &domain()).is_ok());
}

#[test]
fn debug_shows_no_key() {
    let ca = authority();
    let shown = format!("{ca:?}{ca:#?}");
    for line in ca.key().to_pem().lines().filter(|line| !line.starts_with('-')) {
        assert!(!shown.contains(line));
    }
}

#[test]
fn a_root_made_for_another_trust_domain_is_not_used() {
    let ca = authority();
    let other = TrustDomain::new("other.example").unwrap();
    let error = Authority::from_pem(&ca.key().to_pem(), &ca.to_pem(), &other, now()).unwrap_err();
    assert!(matches!(error, AuthorityError::OtherTrustDomain { .. }), "{error}");
    assert!(error.to_string().contains("cluster.local, not for other.example"), "{error}");
}
