//! Which host a request names, though many spellings may name one.
//!
//! In lower case, without the port and without the root's dot; an IPv6 address without brackets, in its canonical form (RFC 5952). On the
//! stack. What is no host's name and no address may mean another host to an application: where a policy looks at hosts, it is refused. Pure.

use std::io::Write as _;
use std::net::Ipv6Addr;

use super::path::Unclear;
use super::text::Text;

/// The longest host name; DNS allows 253 bytes (RFC 1035, section 2.3.4).
const MAX: usize = 255;

/// A request's host, as policies compare it.
#[derive(Debug)]
pub(super) struct Host {
    bytes: [u8; MAX],
    len: usize,
}

// === impl Host ===

impl Host {
    /// Of an authority as it came; `None` where it names nobody.
    ///
    /// # Errors
    /// [`Unclear::Host`].
    pub(super) fn of(authority: &str) -> Result<Option<Self>, Unclear> {
        if authority.is_empty() {
            return Ok(None);
        }
        let (name, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(Unclear::Host)?;
                check_port(port)?;
                let address: Ipv6Addr = address.parse().map_err(|_| Unclear::Host)?;
                return Ok(Some(Self::address(address)));
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        check_port(port)?;
        let name = name.strip_suffix('.').unwrap_or(name);
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if name.len() > MAX || !name.split('.').all(label) {
            return Err(Unclear::Host);
        }
        let mut host = Self { bytes: [0; MAX], len: name.len() };
        for (to, from) in host.bytes.iter_mut().zip(name.bytes()) {
            *to = from.to_ascii_lowercase();
        }
        Ok(Some(host))
    }

    fn address(address: Ipv6Addr) -> Self {
        let mut bytes = [0; MAX];
        let mut left = &mut bytes[..];
        // There is room for any address.
        let _ = write!(left, "{address}");
        let len = MAX - left.len();
        Self { bytes, len }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Nothing, or a colon and digits, of which there may be none (RFC 3986, section 3.2.3).
fn check_port(text: &str) -> Result<(), Unclear> {
    let digits = text.strip_prefix(':').unwrap_or(text);
    let fits = digits.bytes().all(|byte| byte.is_ascii_digit()) && (text.is_empty() || text.starts_with(':'));
    if fits { Ok(()) } else { Err(Unclear::Host) }
}

/// What hosts must be like, as they are compared.
pub(super) fn normal(text: Text) -> Text {
    let is_whole = matches!(text, Text::Exact(_));
    let ends = !matches!(text, Text::Prefix(_));
    text.map(|text| {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Some(address) = bare.parse::<Ipv6Addr>().ok().filter(|_| is_whole) {
            return address.to_string().into();
        }
        let name = text.strip_suffix('.').filter(|_| ends).unwrap_or(text);
        name.to_ascii_lowercase().into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_many_spellings() {
        for (authority, expected) in [
            ("orders", "orders"),
            ("Orders.Shop:8080", "orders.shop"),
            ("orders.shop.", "orders.shop"),
            ("orders.shop.:80", "orders.shop"),
            ("orders:", "orders"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("my_host", "my_host"),
            ("[::1]", "::1"),
            ("[::1]:80", "::1"),
            ("[0:0:0:0:0:0:0:1]", "::1"),
            ("[2001:DB8::A]:1", "2001:db8::a"),
            ("[::ffff:10.0.0.1]", "::ffff:10.0.0.1"),
        ] {
            let host = Host::of(authority).unwrap().unwrap();
            assert_eq!(std::str::from_utf8(host.as_bytes()), Ok(expected), "{authority}");
        }
        assert!(Host::of("").unwrap().is_none());
    }

    #[test]
    fn what_is_no_host_is_unclear() {
        let long = "a".repeat(256);
        for authority in [
            "user@orders",
            "admin@",
            "orders:80:80",
            "orders:8o",
            "orders..",
            ".",
            ".orders",
            "or ders",
            "%6frders",
            "[::1",
            "[::1]x",
            "[::1%25eth0]",
            "[orders]",
            "::1",
            "orders/",
            "orders,admin",
            "örders",
            &long,
        ] {
            assert_eq!(Host::of(authority).map(|_| ()), Err(Unclear::Host), "{authority}");
        }
    }

    #[test]
    fn rules_are_compared_in_the_same_form() {
        for (text, host) in [
            (Text::Exact("Orders.Shop.".into()), "orders.shop"),
            (Text::Exact("[0::1]".into()), "::1"),
            (Text::Exact("::1".into()), "::1"),
            (Text::Suffix(".Shop.".into()), "orders.shop"),
            (Text::Prefix("Orders.".into()), "orders.shop"),
        ] {
            assert!(normal(text.clone()).is(host.as_bytes()), "{text:?}");
        }
    }
}
