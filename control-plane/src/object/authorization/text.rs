//! Texts with a `*` at one end, hosts, paths and gRPC methods.

use tulle_api::v1;

/// A text, or how one begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Star<'t> {
    Exact(&'t str),
    Prefix(&'t str),
    Suffix(&'t str),
}

/// Reads a text with at most one `*`, at its beginning or its end. `*` alone is how any text begins.
pub(super) fn star(text: &str) -> Result<Star<'_>, String> {
    let read = match (text.strip_suffix('*'), text.strip_prefix('*')) {
        _ if text.is_empty() => return Err("an empty text describes nothing".to_owned()),
        (Some(start), _) if !start.contains('*') => Star::Prefix(start),
        (None, Some(end)) if !end.contains('*') => Star::Suffix(end),
        (None, None) if !text.contains('*') => Star::Exact(text),
        (None, None) => {
            return Err(format!("`{text}` has a `*` in its middle, where it would stand for itself"));
        }
        _ => return Err(format!("`{text}` has more than one `*`")),
    };
    Ok(read)
}

// === impl Star ===

impl Star<'_> {
    pub(super) fn on_the_wire(self) -> v1::TextMatch {
        use v1::text_match::Match;

        let one = match self {
            Self::Exact(text) => Match::Exact(text.to_owned()),
            Self::Prefix(text) => Match::Prefix(text.to_owned()),
            Self::Suffix(text) => Match::Suffix(text.to_owned()),
        };
        v1::TextMatch { r#match: Some(one) }
    }
}

/// A header's or a claim's value; it may be empty.
pub(super) fn read_value(text: &str) -> Result<v1::TextMatch, String> {
    if text.is_empty() {
        return Ok(Star::Exact("").on_the_wire());
    }
    Ok(star(text)?.on_the_wire())
}

/// In lower case and without a trailing dot, as proxies compare it; an IPv6 address without brackets, in its canonical form (RFC 5952).
pub(super) fn read_host(text: &str) -> Result<v1::TextMatch, String> {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = inside.unwrap_or(text).parse::<std::net::Ipv6Addr>() {
        return Ok(Star::Exact(&address.to_string()).on_the_wire());
    }
    let lower = text.to_ascii_lowercase();
    let read = star(lower.strip_suffix('.').unwrap_or(&lower))?;
    let (Star::Exact(part) | Star::Prefix(part) | Star::Suffix(part)) = read;
    if part.contains(':') {
        return Err(format!("`{text}` has a port, without which hosts are compared: name it in `ports`"));
    }
    let fits = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if !fits {
        return Err(format!("`{text}` cannot be a host"));
    }
    Ok(read.on_the_wire())
}

/// RFC 9110 §9.1: case and all.
pub(super) fn read_method(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err(format!("`{text}`: methods are compared whole; for any of them, leave the field out"));
    }
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b);
    if text.is_empty() || !text.bytes().all(is_token) {
        return Err(format!("`{text}` cannot be a method"));
    }
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        let upper = text.to_ascii_uppercase();
        return Err(format!(
            "methods are compared case and all, and `{text}` is none that is in use: write `{upper}`"
        ));
    }
    Ok(text.to_owned())
}

/// `/a`, `/a/*`, `*/b`, `/a/{*}/b` or `/a/{**}`.
pub(super) fn read_path(text: &str) -> Result<v1::PathMatch, String> {
    use v1::path_match::Match;

    let one = if text.contains(['{', '}']) {
        check_template(text)?;
        Match::Template(text.to_owned())
    } else {
        let read = star(text)?;
        let (Star::Exact(part) | Star::Prefix(part) | Star::Suffix(part)) = read;
        let is_whole = !matches!(read, Star::Suffix(_)) && !part.is_empty();
        if is_whole && !part.starts_with('/') {
            return Err(format!("`{text}` does not begin with `/`"));
        }
        check_normal(text, read)?;
        match read {
            Star::Exact(path) => Match::Exact(path.to_owned()),
            Star::Prefix(start) => Match::Prefix(start.to_owned()),
            Star::Suffix(end) => Match::Suffix(end.to_owned()),
        }
    };
    Ok(v1::PathMatch { r#match: Some(one) })
}

/// Paths are compared as they are after normalisation: what that never leaves would describe nothing.
fn check_normal(text: &str, read: Star<'_>) -> Result<(), String> {
    let (Star::Exact(part) | Star::Prefix(part) | Star::Suffix(part)) = read;
    if let Some(wrong) = ["?", "#", "\\"].into_iter().find(|one| part.contains(*one)) {
        return Err(format!("`{text}`: no path has `{wrong}`; queries are not looked at"));
    }
    let decoded = decode(part).map_err(|why| format!("`{text}`: {why}"))?;
    if decoded.chars().any(char::is_control) {
        return Err(format!("`{text}` has a control character: a request with one is refused in any case"));
    }
    let segments: Vec<&str> = part.split('/').collect();
    // Where the text goes on, its first or its last segment does.
    let whole = match read {
        Star::Exact(_) => &segments[..],
        Star::Prefix(_) => segments.split_last().map_or(&[][..], |(_, whole)| whole),
        Star::Suffix(_) => segments.split_first().map_or(&[][..], |(_, whole)| whole),
    };
    if part.contains("//") || whole.iter().any(|segment| matches!(*segment, "." | "..")) {
        return Err(format!(
            "`{text}`: paths are compared after `//`, `/./` and `/../` are resolved, so that none would be like this"
        ));
    }
    Ok(())
}

/// Encoded characters are decoded before paths are compared, once; what nobody can tell then describes nothing.
fn decode(part: &str) -> Result<String, String> {
    let mut decoded = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.extend_from_slice(before.as_bytes());
        let digits = after.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return Err("`%` stands before two hexadecimal digits".to_owned());
        };
        rest = after.get(2..).unwrap_or_default();
        let is_again = byte == b'%' && rest.bytes().take_while(u8::is_ascii_hexdigit).take(2).count() == 2;
        if matches!(byte, b'/' | b'\\') || is_again {
            return Err(
                "a request whose path has an encoded slash, or is encoded twice, is refused in any case"
                    .to_owned(),
            );
        }
        decoded.push(byte);
    }
    decoded.extend_from_slice(rest.as_bytes());
    String::from_utf8(decoded).map_err(|_| "decoded, it is not UTF-8".to_owned())
}

fn check_template(text: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err(format!("`{text}` does not begin with `/`"));
    };
    let segments: Vec<&str> = rest.split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            "{*}" => {}
            "{**}" if index + 1 == segments.len() => {}
            "{**}" => return Err(format!("`{text}`: `{{**}}` stands at the end only")),
            other if other.contains(['{', '}', '*']) => {
                return Err(format!(
                    "`{text}`: `{other}` is neither a segment nor `{{*}}`, which stands for a whole one, nor `{{**}}`"
                ));
            }
            _ => {}
        }
    }
    check_normal(text, Star::Exact(text))
}

/// `<package>.<Service>/<Method>`, or `*` in place of one of the two.
pub(super) fn read_grpc_method(text: &str) -> Result<String, String> {
    let form = "`<package>.<Service>/<Method>`, `<package>.<Service>/*` or `*/<Method>`";
    if text.starts_with('/') {
        return Err(format!("`{text}` begins with `/`: write {form}"));
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    match text.split_once('/') {
        Some(("*", method)) if is_name(method) => Ok(text.to_owned()),
        Some((service, "*")) if is_name(service) => Ok(text.to_owned()),
        Some((service, method)) if is_name(service) && is_name(method) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is no method of gRPC: write {form}")),
    }
}
