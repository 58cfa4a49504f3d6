//! Which join token a certificate goes back to: told by its serial number, and handed on at each renewal.
//!
//! So whoever revokes a token ends the certificates that were obtained with it, too, on every replica, and nobody has to keep a list of
//! certificates. A serial number is 20 bytes then, of which the first 8 are the token's; by themselves they say nothing of it. It stays as hard to foresee and to
//! meet twice as RFC 5280 §4.1.2.2 and its profiles want: the other 12 are random.

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::SerialNumber;
use rustls_pki_types::CertificateDer;

use crate::issue::{IssueError, serial};
use crate::x509;

/// How long the serial number of a certificate of a lineage is, in bytes. Others of ours are shorter.
const LENGTH: usize = 20;
/// How much of it is the token's.
const TAG: usize = 8;

/// The certificates that go back to one join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lineage([u8; TAG]);

// === impl Lineage ===

impl Lineage {
    /// What begins with the token of this ID (`jti`).
    pub fn of_token(jti: &str) -> Self {
        let mut tag = [0; TAG];
        tag.copy_from_slice(&digest(&SHA256, jti.as_bytes()).as_ref()[..TAG]);
        // A serial number is positive, and of a length.
        tag[0] = tag[0] & 0x7f | 0x40;
        Self(tag)
    }

    /// What a certificate belongs to; `None`: it goes back to no join token, or is none of ours.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = x509::parse(certificate).ok()?;
        let serial = parsed.serial();
        let tag = serial.first_chunk::<TAG>().filter(|_| serial.len() == LENGTH)?;
        Some(Self(*tag))
    }

    /// A new serial number of it.
    pub(crate) fn serial(self) -> Result<SerialNumber, IssueError> {
        let random = serial()?.to_bytes();
        Ok(SerialNumber::from_slice(&[&self.0[..], &random[random.len() - (LENGTH - TAG)..]].concat()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::id::{SpiffeId, TrustDomain};
    use crate::issue::Authority;
    use crate::key::{PrivateKey, csr};

    #[test]
    fn a_certificate_says_which_token_it_goes_back_to_and_no_two_are_the_same() {
        let (now, domain, hour) = (SystemTime::now(), TrustDomain::default(), Duration::from_secs(3600));
        let authority = Authority::generate(&domain, hour * 24, now).unwrap();
        let id = SpiffeId::new(&domain, "shop", "web").unwrap();
        let request = csr(&PrivateKey::generate().unwrap(), None).unwrap();
        for jti in ["a", "b", ""] {
            let lineage = Lineage::of_token(jti);
            let issue =
                || authority.issue_of(&request, &id, hour, now, Some(lineage)).unwrap().chain.remove(0);
            let (first, second) = (issue(), issue());
            assert_eq!([&first, &second].map(Lineage::of_certificate), [Some(lineage); 2]);
            let serials = [&first, &second].map(|one| x509::names(one).unwrap().serial);
            assert_ne!(serials[0], serials[1]);
            assert_eq!(serials[0].split(':').count(), LENGTH);
            assert_ne!(lineage, Lineage::of_token("c"));
        }
        let other = authority.issue(&request, &id, hour, now).unwrap().chain.remove(0);
        assert_eq!(Lineage::of_certificate(&other), None);
        assert_eq!(Lineage::of_certificate(authority.root()), None);
    }
}
