//! Requests that come from web pages: one rule for every port of ours that answers whoever is on this host.
//!
//! A browser on this host can be made to send requests to loopback by any page that it visits. It says so itself, in headers that no
//! page can set or take away; what no browser sends has neither.

/// Whether a page sends the request, by its headers: `header` gives the value of one, by its name in lower case. What a person has
/// typed into the address bar comes from no page (`Sec-Fetch-Site: none`; <https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>).
pub fn is_from_a_page<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> bool {
    let from_elsewhere = |site: &[u8]| !matches!(site, b"none" | b"same-origin");
    header("origin").is_some() || header("sec-fetch-site").is_some_and(from_elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_of_elsewhere_sends_says_so() {
        for (headers, expected) in [
            (&[][..], false),
            (&[("host", "localhost"), ("accept", "*/*")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "")], true),
            (&[("origin", "http://attacker.example")], true),
            (&[("origin", "null"), ("sec-fetch-site", "same-origin")], true),
        ] {
            let header = |name: &str| {
                headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes())
            };
            assert_eq!(is_from_a_page(header), expected, "{headers:?}");
        }
    }
}
