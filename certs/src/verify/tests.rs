//! Certificates that are not what an X.509-SVID of the mesh must be: each refused, for its reason.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
    SignatureAlgorithm,
};

use super::*;
use crate::issue::{Authority, ROOT_LIFETIME};
use crate::key::PrivateKey;
use crate::tls;

const HOUR: Duration = Duration::from_secs(3600);
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

type Chain = Vec<CertificateDer<'static>>;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Signs what the authority never would.
struct Forger {
    authority: Authority,
}

/// A public key that nobody has the private half of.
struct Bare(Vec<u8>, &'static SignatureAlgorithm);

impl PublicKeyData for Bare {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.1
    }
}

/// RSAPublicKey (RFC 8017 §A.1.1) with a modulus of 1024 bits.
fn rsa_1024() -> Bare {
    let modulus = [&[0x02, 0x81, 0x81, 0x00][..], &[0xc3; 128]].concat();
    let key = [&[0x30, 0x81, 0x89][..], &modulus, &[0x02, 0x03, 0x01, 0x00, 0x01]].concat();
    Bare(key, &rcgen::PKCS_RSA_SHA256)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A leaf for the mesh's `web`, valid now.
fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(WEB)];
    params.not_before = (now() - HOUR).into();
    params.not_after = (now() + HOUR).into();
    params
}

fn ca(name: &str) -> CertificateParams {
    let mut params = leaf();
    params.subject_alt_names = Vec::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// SubjectAltName with URIs of these bytes, be they text or not (RFC 5280 §4.2.1.6).
fn raw_uris(uris: &[&[u8]]) -> CustomExtension {
    let names: Vec<u8> = uris.iter().flat_map(|uri| [&[0x86, uri.len() as u8][..], *uri].concat()).collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], [&[0x30, names.len() as u8][..], &names].concat())
}

impl Forger {
    fn new() -> Self {
        let authority = Authority::generate(&TrustDomain::default(), ROOT_LIFETIME, now()).unwrap();
        Self { authority }
    }

    fn issuer(&self) -> Issuer<'static, PrivateKey> {
        Issuer::from_ca_cert_der(self.authority.root(), self.authority.key().clone()).unwrap()
    }

    fn forge(&self, change: impl FnOnce(&mut CertificateParams)) -> Chain {
        let mut params = leaf();
        change(&mut params);
        let key = PrivateKey::generate().unwrap();
        vec![params.signed_by(&key, &self.issuer()).unwrap().der().clone()]
    }

    /// The leaf under an intermediate.
    fn under(&self, change: impl FnOnce(&mut CertificateParams), leaf: CertificateParams) -> Chain {
        let (key, leaf_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let mut params = ca("Issuing");
        change(&mut params);
        let intermediate = params.signed_by(&key, &self.issuer()).unwrap().der().clone();
        let issuer = Issuer::from_ca_cert_der(&intermediate, key).unwrap();
        vec![leaf.signed_by(&leaf_key, &issuer).unwrap().der().clone(), intermediate]
    }

    fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<SpiffeId, Refused> {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(x509::seconds(now())));
        let algorithms = tls::provider().signature_verification_algorithms;
        let (leaf, above) = chain.split_first().unwrap();
        let client = verify_peer(self.authority.bundle(), leaf, above, Role::Client, &algorithms, at);
        let server = verify_peer(self.authority.bundle(), leaf, above, Role::Server, &algorithms, at);
        assert_eq!(client.is_ok(), server.is_ok());
        client
    }
}

/// In place of the last occurrence of `from`, which is as long.
fn patched(certificate: &CertificateDer<'static>, from: &[u8], to: &[u8]) -> CertificateDer<'static> {
    let mut der = certificate.to_vec();
    let at = der.windows(from.len()).rposition(|window| window == from).unwrap();
    der[at..at + to.len()].copy_from_slice(to);
    der.into()
}

/// prime256v1 and prime192v1.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P192: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01];

#[test]
fn a_leaf_that_only_the_library_can_read_is_refused() {
    for der in [&b""[..], &[0x30, 0x00], b"no certificate"] {
        let refused = check_leaf(&CertificateDer::from(der.to_vec())).unwrap_err();
        assert_eq!(refused.refusal, Refusal::Malformed, "{refused}");
    }
    let own = Forger::new().forge(|_| {}).remove(0);
    assert!(check_leaf(&own).is_ok());
    let behind = CertificateDer::from([&own[..], &[0]].concat());
    assert_eq!(check_leaf(&behind).unwrap_err().refusal, Refusal::Malformed);
}

#[test]
fn every_bad_certificate_is_refused_for_its_reason() {
    let forger = Forger::new();
    assert_eq!(forger.verify(&forger.forge(|_| {})).unwrap().as_str(), WEB, "the forger can do it right");
    assert!(forger.verify(&forger.under(|_| {}, leaf())).is_ok());
    let names = |names: &[SanType]| {
        let names = names.to_vec();
        forger.forge(move |params| params.subject_alt_names = names)
    };
    let raw = |uris: &[&[u8]]| {
        let extension = raw_uris(uris);
        forger.forge(move |params| {
            params.subject_alt_names = Vec::new();
            params.custom_extensions = vec![extension];
        })
    };
    let mut weak = leaf();
    weak.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let weak = weak.signed_by(&rsa_1024(), &forger.issuer()).unwrap().der().clone();
    let good = forger.forge(|_| {}).remove(0);
    let p192 = patched(&good, P256, P192);
    let mut with_dns = leaf();
    with_dns.subject_alt_names.push(SanType::DnsName("bank.example".try_into().unwrap()));
    let only_shop = |params: &mut CertificateParams| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("shop.example".into())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    };
    let mut under_weak = forger.under(|_| {}, leaf());
    under_weak[1] = patched(&under_weak[1], P256, P192);
    let stranger = Forger::new();
    use Refusal as R;
    let cases: Vec<(&str, Chain, Refusal, &str)> = vec![
        ("no name at all", names(&[]), R::NoSpiffeId, "no URI"),
        ("a DNS name", names(&[SanType::DnsName("web".try_into().unwrap())]), R::NoSpiffeId, "no URI"),
        ("another scheme", names(&[uri("https://cluster.local/ns/shop/sa/web")]), R::NoSpiffeId, "spiffe://"),
        ("another path", names(&[uri("spiffe://cluster.local/web")]), R::NoSpiffeId, "/ns/"),
        ("a query", names(&[uri("spiffe://cluster.local/ns/shop/sa/web?a")]), R::NoSpiffeId, "segment"),
        ("an escape", names(&[uri("spiffe://cluster.local/ns/shop/sa/%77eb")]), R::NoSpiffeId, "segment"),
        (
            "two URIs",
            names(&[uri(WEB), uri("spiffe://cluster.local/ns/shop/sa/admin")]),
            R::SeveralUris,
            "several",
        ),
        ("one that is no text", raw(&[b"spiffe://cluster.local/ns/shop/sa/w\xffb"]), R::NoSpiffeId, "no URI"),
        ("a good one beside it", raw(&[WEB.as_bytes(), b"spiffe://\xff"]), R::SeveralUris, "2 URIs"),
        ("a good one after it", raw(&[b"\xff\xfe", WEB.as_bytes()]), R::SeveralUris, "2 URIs"),
        ("a NUL in it", raw(&[b"spiffe://cluster.local/ns/shop/sa/web\0.evil"]), R::NoSpiffeId, "segment"),
        (
            "another trust domain",
            names(&[uri("spiffe://else.example/ns/a/sa/b")]),
            R::OtherTrustDomain,
            "else.example",
        ),
        (
            "a CA as a leaf",
            forger.forge(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            R::Malformed,
            "",
        ),
        (
            "for code only",
            forger.forge(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            R::Malformed,
            "",
        ),
        ("over", forger.forge(|params| params.not_after = (now() - HOUR / 2).into()), R::Expired, ""),
        ("to come", forger.forge(|params| params.not_before = (now() + HOUR / 2).into()), R::NotYetValid, ""),
        ("RSA of 1024 bits", vec![weak], R::WeakKey, "1024 bits"),
        ("a key on P-192", vec![p192], R::WeakKey, "curve"),
        ("an issuer on P-192", under_weak, R::WeakKey, "Issuing"),
        (
            "a name that its issuer may not give",
            forger.under(only_shop, with_dns),
            R::Malformed,
            "NameConstraint",
        ),
        (
            "an issuer that is no CA",
            forger.under(|params| params.is_ca = IsCa::ExplicitNoCa, leaf()),
            R::Malformed,
            "",
        ),
        (
            "an issuer that is over",
            forger.under(|params| params.not_after = (now() - HOUR / 2).into(), leaf()),
            R::Expired,
            "",
        ),
        ("another root of the same form", stranger.forge(|_| {}), R::UnknownRoot, ""),
        ("no certificate", vec![CertificateDer::from(b"rubbish".to_vec())], R::Malformed, ""),
        ("half of one", vec![CertificateDer::from(good[..good.len() / 2].to_vec())], R::Malformed, ""),
        ("more than one", vec![CertificateDer::from([&good[..], &[0]].concat())], R::Malformed, ""),
    ];
    for (name, chain, refusal, word) in cases {
        let refused = forger.verify(&chain).expect_err(name);
        assert_eq!(refused.refusal, refusal, "{name}: {refused}");
        assert!(refused.detail.contains(word), "{name}: {refused}");
    }
}

#[test]
fn a_signature_by_a_hash_that_can_be_forged_is_told() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let own = ca("Company").self_signed(&key).unwrap().der().clone();
    let below = Issuer::from_ca_cert_der(&own, key).unwrap();
    let issuing = ca("Issuing").signed_by(&PrivateKey::generate().unwrap(), &below).unwrap().der().clone();
    // sha256WithRSAEncryption and sha1WithRSAEncryption; the last one is outside of what is signed.
    let (sha256, sha1) = (
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b],
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05],
    );
    assert!(!x509::has_weak_signature(&issuing) && x509::weak_key(&own).is_none());
    let forgeable = patched(&issuing, &sha256, &sha1);
    assert!(x509::has_weak_signature(&forgeable));
    let forger = Forger::new();
    let chain = [Forger::new().forge(|_| {}).remove(0), forgeable];
    let refused = forger.verify(&chain).unwrap_err();
    assert_eq!(refused.refusal, Refusal::WeakKey, "{refused}");
    assert!(refused.detail.contains("SHA-1") && refused.detail.contains("Issuing"), "{refused}");
}

#[test]
fn long_chains_are_refused_and_cost_no_more_than_they_may() {
    let forger = Forger::new();
    // Each under the one before, twelve deep.
    let mut above = vec![forger.authority.root().clone()];
    let mut issuer = forger.issuer();
    for depth in 0..12 {
        let key = PrivateKey::generate().unwrap();
        let next = ca(&format!("CA {depth}")).signed_by(&key, &issuer).unwrap().der().clone();
        issuer = Issuer::from_ca_cert_der(&next, key).unwrap();
        above.insert(0, next);
    }
    let deep = leaf().signed_by(&PrivateKey::generate().unwrap(), &issuer).unwrap().der().clone();
    let refused = forger.verify(&[&[deep][..], &above[..]].concat()).unwrap_err();
    assert!(matches!(refused.refusal, Refusal::Malformed | Refusal::UnknownRoot), "{refused}");

    // Two hundred who could have issued it, by their names and by that of their issuer.
    let chain = forger.under(|_| {}, leaf());
    let mut crowd = vec![chain[0].clone()];
    for _ in 0..200 {
        let (key, stranger) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let issuer = Issuer::from_ca_cert_der(forger.authority.root(), stranger).unwrap();
        crowd.push(ca("Issuing").signed_by(&key, &issuer).unwrap().der().clone());
    }
    crowd.push(chain[1].clone());
    let refused = forger.verify(&crowd).unwrap_err();
    assert!(matches!(refused.refusal, Refusal::Malformed | Refusal::UnknownRoot), "{refused}");
    // What may be left out does no harm.
    assert!(forger.verify(&[chain, above].concat()).is_ok());
}
