//! Names of images, as container runtimes read them (the grammar of the OCI distribution's `reference`).

/// `[host[:port]/]path[:tag][@digest]`.
///
/// # Errors
/// Which part is none.
pub(super) fn image(value: &str) -> Result<(), String> {
    let (name, digest) = value.split_once('@').map_or((value, None), |(name, digest)| (name, Some(digest)));
    if let Some(said) = digest {
        self::digest(said)?;
    }
    let (repository, said) = tagged(name);
    said.map_or(Ok(()), tag)?;
    let (host, path) = match repository.split_once('/') {
        // As Docker tells a host from the first part of a path.
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
        _ => (None, repository),
    };
    if repository.len() > 255 {
        return Err("its name is longer than 255 bytes".to_owned());
    }
    if host.is_some_and(|host| !is_host(host)) || !path.split('/').all(is_component) {
        return Err("its name is none of an image: lower-case letters, digits, and between them `.`, `_`, `-` and `/`, after \
                    the host of a registry"
            .to_owned());
    }
    Ok(())
}

/// What can stand behind the colon.
///
/// # Errors
/// That it is none.
pub(super) fn tag(value: &str) -> Result<(), String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_good = value.bytes().next().is_some_and(is_word)
        && value.len() <= 128
        && value.bytes().all(|byte| is_word(byte) || b".-".contains(&byte));
    match is_good {
        true => Ok(()),
        false => Err("it is no tag of an image: at most 128 letters, digits, `_`, `.` and `-`, of which the last two do \
                      not come first"
            .to_owned()),
    }
}

/// An image without its tag and digest: who makes it, and not which of them it is.
pub(super) fn repository(image: &str) -> &str {
    tagged(image.split('@').next().unwrap_or_default()).0
}

/// A name, and its tag. A registry may have a port.
fn tagged(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    }
}

fn digest(value: &str) -> Result<(), String> {
    let is_hex = |hex: &str| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let length = match value.split_once(':') {
        Some(("sha256", hex)) if is_hex(hex) => (hex.len(), 64),
        Some(("sha512", hex)) if is_hex(hex) => (hex.len(), 128),
        _ => (0, 64),
    };
    match length.0 == length.1 {
        true => Ok(()),
        false => Err("its digest is none: `sha256:` and 64 digits of `0` to `9` and `a` to `f`".to_owned()),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (None, port),
        Some(_) => return false,
        None => {
            let end = host.find(':').unwrap_or(host.len());
            (Some(&host[..end]), &host[end..])
        }
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = match port.strip_prefix(':') {
        Some(port) => port.parse::<u16>().is_ok_and(|port| port > 0),
        None => port.is_empty(),
    };
    is_port && name.is_none_or(|name| name.split('.').all(is_label))
}

/// Letters and digits, and between them one `.`, one or two `_`, or any number of `-`.
fn is_component(part: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (first, last) = (part.as_bytes().first(), part.as_bytes().last());
    first.is_some_and(is_word)
        && last.is_some_and(is_word)
        && part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_from_what_no_runtime_pulls() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for good in [
            "tulle",
            "tulle:1.0.0",
            "library/tulle",
            "registry.example/mesh/tulle:v1_2-rc.3",
            "registry.example:5000/tulle",
            "localhost/tulle:dev",
            "localhost:5000/a__b/c.d/e--f",
            "[fd00::1]:5000/tulle:1",
            "REGISTRY.example/tulle",
            &format!("tulle@{digest}"),
            &format!("registry.example:5000/tulle:1@{digest}"),
        ] {
            assert_eq!(image(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-1",
            ":1",
            "tulle:",
            "tulle:-1",
            "tulle:.1",
            "Tulle",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "a_",
            "http://registry.example/tulle",
            "registry.example:port/tulle",
            "registry.example:70000/tulle",
            "-registry.example/tulle",
            "[fd00::x]/tulle",
            "tulle@",
            "tulle@sha256:00",
            "tulle@md5:00",
            "tulle@sha256:zz",
            "$(IMAGE)",
            &"a".repeat(256),
            &format!("tulle@{}", digest.to_uppercase()),
        ] {
            assert!(image(bad).is_err(), "{bad}");
        }
        for bad in ["", "-1", ".1", "a/b", "a:b", "a@b", "ü", &"1".repeat(129)] {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_repository_is_what_stands_before_tag_and_digest() {
        for (image, expected) in [
            ("tulle", "tulle"),
            ("tulle:1", "tulle"),
            ("registry.example:5000/tulle", "registry.example:5000/tulle"),
            ("registry.example:5000/tulle:1@sha256:00", "registry.example:5000/tulle"),
            ("", ""),
        ] {
            assert_eq!(repository(image), expected, "{image}");
        }
    }
}
