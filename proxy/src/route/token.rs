//! What tells, from one request of a session to the next, where the session goes.
//!
//! A token is the whole state of a session: nothing is remembered between requests, so that every proxy and worker reads what
//! any other has written, also after a restart. It is sealed with a key that only the mesh's proxies have: nobody else can read an
//! address from it, nor make one. Sealed again, the same token is the same text (AES-GCM-SIV, RFC 8452, where one nonce may serve all
//! messages): two clients can see that they are served by one endpoint, and no more.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{constant_time, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use zeroize::Zeroizing;

/// Where a session goes, and since when. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// [`backend_id`] of the backend.
    pub backend: u32,
    /// Of the endpoint.
    pub address: SocketAddr,
    /// When the session began.
    pub began: u64,
    /// When it was last used, where that matters.
    pub seen: u64,
}

/// Seals tokens. Cheap to clone; wiped when dropped, and compared in constant time.
#[derive(Clone)]
pub struct SessionKey {
    secret: Zeroizing<[u8; SECRET]>,
    key: Arc<LessSafeKey>,
}

/// Bytes of a key.
const SECRET: usize = 32;
const TAG: usize = 16;
/// Backend, IPv6 address, port, two times.
const PLAIN: usize = 4 + 16 + 2 + 8 + 8;
/// Of a token as text.
const TEXT: usize = (PLAIN + TAG) * 4 / 3;

/// Tells a backend, `<namespace>/<name>:<port>`, from the others of its rule, whatever their order.
pub fn backend_id(label: &str) -> u32 {
    let hash = digest::digest(&digest::SHA256, label.as_bytes());
    hash.as_ref().first_chunk().map_or(0, |first| u32::from_be_bytes(*first))
}

// === impl SessionKey ===

impl SessionKey {
    /// `None`: a key is 32 bytes.
    pub fn new(secret: &[u8]) -> Option<Self> {
        let secret = Zeroizing::new(<[u8; SECRET]>::try_from(secret).ok()?);
        let key = UnboundKey::new(&AES_256_GCM_SIV, &secret[..]).ok()?;
        Some(Self { secret, key: Arc::new(LessSafeKey::new(key)) })
    }

    /// The token as text of letters, digits, `-` and `_`, good for `scope` only. `None` should not be.
    pub fn seal(&self, scope: &str, token: &Token) -> Option<String> {
        let mut bytes = Vec::with_capacity(PLAIN + TAG);
        bytes.extend_from_slice(&token.to_bytes());
        self.key.seal_in_place_append_tag(nonce(), Aad::from(scope.as_bytes()), &mut bytes).ok()?;
        Some(BASE64.encode(bytes))
    }

    /// The token of `text`; `None`: it is none that a proxy of the mesh has sealed for `scope`.
    pub fn open(&self, scope: &str, text: &[u8]) -> Option<Token> {
        let text: &[u8; TEXT] = text.try_into().ok()?;
        let mut bytes = [0; PLAIN + TAG];
        if BASE64.decode_slice(text, &mut bytes).ok()? != bytes.len() {
            return None;
        }
        let plain = self.key.open_in_place(nonce(), Aad::from(scope.as_bytes()), &mut bytes).ok()?;
        Some(Token::from_bytes(plain.first_chunk()?))
    }
}

/// One for all: see the module.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl PartialEq for SessionKey {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.secret[..], &other.secret[..]).is_ok()
    }
}

impl Eq for SessionKey {}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

// === impl Token ===

impl Token {
    fn to_bytes(self) -> [u8; PLAIN] {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = [0; PLAIN];
        bytes[..4].copy_from_slice(&self.backend.to_be_bytes());
        bytes[4..20].copy_from_slice(&ip.octets());
        bytes[20..22].copy_from_slice(&self.address.port().to_be_bytes());
        bytes[22..30].copy_from_slice(&self.began.to_be_bytes());
        bytes[30..].copy_from_slice(&self.seen.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; PLAIN]) -> Self {
        fn part<const N: usize>(bytes: &[u8; PLAIN], at: usize) -> [u8; N] {
            bytes[at..].first_chunk().copied().unwrap_or([0; N])
        }
        let ip = IpAddr::from(part::<16>(bytes, 4)).to_canonical();
        Self {
            backend: u32::from_be_bytes(part(bytes, 0)),
            address: SocketAddr::new(ip, u16::from_be_bytes(part(bytes, 20))),
            began: u64::from_be_bytes(part(bytes, 22)),
            seen: u64::from_be_bytes(part(bytes, 30)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(address: &str) -> Token {
        let address = address.parse().unwrap();
        Token { backend: backend_id("default/v1:80"), address, began: 1_700_000_000_123, seen: u64::MAX }
    }

    #[test]
    fn what_was_sealed_is_opened_by_the_same_key_for_the_same_scope_only() {
        let key = SessionKey::new(&[7; 32]).unwrap();
        let same = SessionKey::new(&[7; 32]).unwrap();
        let other = SessionKey::new(&[8; 32]).unwrap();
        for address in ["10.1.2.3:8080", "[fd00::1]:1", "[::]:65535"] {
            let text = key.seal("a", &token(address)).unwrap();
            assert_eq!(text.len(), TEXT);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
            assert_eq!(same.open("a", text.as_bytes()), Some(token(address)));
            assert_eq!(same.open("b", text.as_bytes()), None);
            assert_eq!(other.open("a", text.as_bytes()), None);
            assert_eq!(same.seal("a", &token(address)), Some(text));
        }
        assert!(SessionKey::new(&[7; 31]).is_none());
        assert_eq!(key, same);
        assert_ne!(key, other);
        assert_eq!(format!("{key:?}"), "SessionKey");
    }

    #[test]
    fn nothing_of_the_address_stands_in_the_text_and_no_changed_text_opens() {
        let key = SessionKey::new(&[7; 32]).unwrap();
        let text = key.seal("a", &token("10.1.2.3:8080")).unwrap();
        let bytes = BASE64.decode(&text).unwrap();
        assert!(!bytes.windows(4).any(|part| part == [10, 1, 2, 3]));
        for at in 0..text.len() {
            for flipped in [b'A', b'B', b'~', b'=', 0, 0xff] {
                let mut changed = text.clone().into_bytes();
                if std::mem::replace(&mut changed[at], flipped) != flipped {
                    assert_eq!(key.open("a", &changed), None, "{at} {flipped}");
                }
            }
            assert_eq!(key.open("a", &text.as_bytes()[..at]), None);
        }
        assert_eq!(key.open("a", format!("{text}A").as_bytes()), None);
    }
}
