//! Which pages of other origins may read a service's answers (GEP-1767, `HTTPRoute.spec.rules.filters.cors`; the Fetch standard, "CORS
//! protocol").
//!
//! Pure: answers a browser's question in advance (a preflight), and says in answers who may read them. It refuses nothing: that is the
//! browser's part. Called by `forward/filters.rs`.

use std::str::FromStr;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS as ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS as ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS as ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN as ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS as EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE as MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS as REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD as REQUEST_METHOD,
    AUTHORIZATION, COOKIE, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::condition::Asked;
use super::filter::Scheme;
use super::host::Hostname;

/// Who may read the answers, and ask for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    pub origins: Vec<AllowedOrigin>,
    /// Whether requests may carry cookies and the like.
    pub credentials: bool,
    pub methods: Listed,
    pub headers: Listed,
    /// Headers of answers that pages may read.
    pub expose: Listed,
    /// How long a browser may rely on an answer to a preflight, in seconds.
    pub max_age: u32,
}

/// Names, as a header lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    Any,
    /// Joined by commas; `None`: there are none.
    These(Option<HeaderValue>),
}

/// `*`, or an origin whose host may be any, or any below a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigin {
    Any,
    Of {
        scheme: Scheme,
        /// `None`: any.
        host: Option<Hostname>,
        port: u16,
    },
}

/// Has been put among a request's extensions where the rule says who may read its answers, in place of the application.
#[derive(Clone, Copy, Debug)]
pub struct InPlace;

/// Text that is neither `*` nor `<http|https>://<host>[:<port>]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an origin: `*`, or `http://` or `https://`, a host, `*` or `*.` and a host, and perhaps a port"
)]
pub struct InvalidOrigin(String);

/// What a request says that answers to it depend on.
#[derive(Clone, Debug)]
pub struct CorsRequest {
    /// As it came, if it is allowed to read the answer.
    allowed: Option<HeaderValue>,
    credentialed: bool,
}

// === impl Cors ===

impl Cors {
    /// What is kept of a request for [`Self::answer`]; `None` for one that is not from a page of some origin.
    pub fn request(&self, headers: &HeaderMap) -> Option<CorsRequest> {
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = origins.next()?;
        let text = origin.to_str().ok().filter(|_| origins.next().is_none());
        let is_allowed = text.is_some_and(|text| self.origins.iter().any(|one| one.allows(text)));
        let credentialed =
            self.credentials || headers.contains_key(COOKIE) || headers.contains_key(AUTHORIZATION);
        Some(CorsRequest { allowed: is_allowed.then(|| origin.clone()), credentialed })
    }

    /// Whether a browser asks what it may ask for.
    pub fn is_preflight(asked: &Asked<'_>) -> bool {
        *asked.method == Method::OPTIONS
            && asked.headers.contains_key(ORIGIN)
            && asked.headers.contains_key(REQUEST_METHOD)
    }

    /// Puts into the answer to a preflight what may be asked for.
    pub fn preflight(&self, request: &CorsRequest, asked: &HeaderMap, answer: &mut HeaderMap) {
        self.share(request, answer);
        vary(answer, "Access-Control-Request-Method, Access-Control-Request-Headers");
        if request.allowed.is_none() {
            return;
        }
        for (name, allowed, wanted) in
            [(ALLOW_METHODS, &self.methods, REQUEST_METHOD), (ALLOW_HEADERS, &self.headers, REQUEST_HEADERS)]
        {
            // A wildcard means itself where there are credentials, so what is asked for is said instead of it.
            let value = match allowed {
                Listed::Any => asked.get(wanted),
                Listed::These(these) => these.as_ref(),
            };
            if let Some(value) = value {
                answer.insert(name, value.clone());
            }
        }
        answer.insert(MAX_AGE, HeaderValue::from(self.max_age));
    }

    /// Puts into an answer who may read it, in place of what the application says of that; `None`: whoever asked is of no origin.
    pub fn answer(&self, request: Option<&CorsRequest>, answer: &mut HeaderMap) {
        let Some(request) = request else {
            vary(answer, "Origin");
            return;
        };
        self.share(request, answer);
        if request.allowed.is_none() {
            return;
        }
        let exposed = match &self.expose {
            Listed::These(these) => these.clone(),
            Listed::Any if !request.credentialed => Some(HeaderValue::from_static("*")),
            Listed::Any => {
                let names: Vec<_> = answer.keys().map(HeaderName::as_str).collect();
                HeaderValue::try_from(names.join(", ")).ok()
            }
        };
        if let Some(exposed) = exposed {
            answer.insert(EXPOSE_HEADERS, exposed);
        }
    }

    /// Removes what the application says of who may read its answers.
    pub fn strip(answer: &mut HeaderMap) {
        for name in [ALLOW_ORIGIN, ALLOW_CREDENTIALS, ALLOW_METHODS, ALLOW_HEADERS, EXPOSE_HEADERS, MAX_AGE] {
            answer.remove(name);
        }
    }

    fn share(&self, request: &CorsRequest, answer: &mut HeaderMap) {
        Self::strip(answer);
        vary(answer, "Origin");
        if let Some(origin) = &request.allowed {
            answer.insert(ALLOW_ORIGIN, origin.clone());
            if self.credentials {
                answer.insert(ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
        }
    }
}

/// Tells caches what the answer depends on (RFC 9110 §12.5.5).
fn vary(answer: &mut HeaderMap, on: &'static str) {
    let is_said = answer.get_all(VARY).iter().any(|value| value == on || value == "*");
    if !is_said {
        answer.append(VARY, HeaderValue::from_static(on));
    }
}

// === impl Listed ===

impl Listed {
    /// `*` is any; `None` where a name cannot stand in a header.
    pub fn new(names: &[String]) -> Option<Self> {
        if names.iter().any(|name| name == "*") {
            return Some(Self::Any);
        }
        if names.is_empty() {
            return Some(Self::These(None));
        }
        let is_token = names.iter().all(|name| HeaderName::from_bytes(name.as_bytes()).is_ok());
        let value = HeaderValue::try_from(names.join(", ")).ok().filter(|_| is_token)?;
        Some(Self::These(Some(value)))
    }
}

// === impl AllowedOrigin ===

impl AllowedOrigin {
    fn allows(&self, origin: &str) -> bool {
        let Self::Of { scheme, host, port } = self else { return true };
        split(origin).filter(|(_, name, _)| is_host(name)).is_some_and(|(own, name, number)| {
            own == *scheme && number == *port && host.as_ref().is_none_or(|host| host.matches(name))
        })
    }
}

impl FromStr for AllowedOrigin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let invalid = || InvalidOrigin(text.to_owned());
        let (scheme, name, port) = split(text).ok_or_else(invalid)?;
        let host = match name {
            "*" => None,
            name => Some(name.parse().map_err(|_| invalid())?),
        };
        Ok(Self::Of { scheme, host, port })
    }
}

/// Whether the text may be a host as browsers name it: of anything else one cannot say what it ends with.
fn is_host(text: &str) -> bool {
    let is_address =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(address) => is_address(address),
        None => {
            let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !text.is_empty() && text.bytes().all(is_in_name)
        }
    }
}

/// Scheme, host and port, which is the scheme's own where none is said.
fn split(origin: &str) -> Option<(Scheme, &str, u16)> {
    let (scheme, rest, usual) = match origin.split_once("://")? {
        (scheme, rest) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest, 80),
        (scheme, rest) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest, 443),
        _ => return None,
    };
    match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|port| is_number && *port != 0)?;
            Some((scheme, host, port))
        }
        _ => Some((scheme, rest, usual)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Listed {
        let names: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        Listed::new(&names).unwrap()
    }

    fn cors(origins: &str, credentials: bool, names_of: &str) -> Cors {
        let origins = origins.split_whitespace().map(|origin| origin.parse().unwrap()).collect();
        let all = names(names_of);
        Cors { origins, credentials, methods: all.clone(), headers: all.clone(), expose: all, max_age: 5 }
    }

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(field).collect()
    }

    fn said(answer: &HeaderMap, name: &str) -> String {
        let lines: Vec<_> = answer.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        lines.join("|")
    }

    #[test]
    fn origins_are_compared_by_scheme_host_and_port() {
        for (allowed, origin, expected) in [
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "https://A.example:443", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://a.example", "https://a.example.evil", false),
            ("https://a.example", "null", false),
            ("http://*.a.example:8080", "http://x.y.a.example:8080", true),
            ("http://*.a.example:8080", "http://a.example:8080", false),
            ("http://*.a.example:8080", "http://evila.example:8080", false),
            ("https://*", "https://[::1]", true),
            ("https://*", "http://a", false),
            ("https://*.example", "https://a.example", true),
            ("https://*.example", "https://x_y.a-b.example", true),
            ("https://*.example", "https://evil/.example", false),
            ("https://*.example", "https://evil#.example", false),
            ("https://*.example", "https://evil?.example", false),
            ("https://*.example", "https://evil\\.example", false),
            ("https://*.example", "https://evil@a.example", false),
            ("https://*.example", "https://evil:80/.example", false),
            ("https://*.example", "https://evil .example", false),
            ("https://*", "https://", false),
            ("https://*", "https://evil/", false),
            ("https://*", "https://[::1/]", false),
            ("*", "null", true),
        ] {
            let is_allowed = allowed.parse::<AllowedOrigin>().unwrap().allows(origin);
            assert_eq!(is_allowed, expected, "{allowed} {origin}");
        }
        for text in [
            "",
            "a.example",
            "ftp://a",
            "https://",
            "https://a:",
            "https://a:0",
            "https://a:x",
            "https://a/b",
        ] {
            assert!(text.parse::<AllowedOrigin>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_preflight_is_told_what_may_be_asked_for_and_a_stranger_nothing() {
        let asked = fields(&[
            ("origin", "https://a.example"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a, x-b"),
        ]);
        let ask = |cors: &Cors| {
            let mut answer = HeaderMap::new();
            cors.preflight(&cors.request(&asked).unwrap(), &asked, &mut answer);
            // It belongs to the answers of the requests proper (Fetch, "CORS protocol", HTTP responses).
            assert_eq!(said(&answer, "access-control-expose-headers"), "");
            ["origin", "methods", "headers", "credentials"]
                .map(|what| said(&answer, &format!("access-control-allow-{what}")))
                .join(";")
        };
        for (origins, credentials, listed, expected) in [
            ("https://a.example", false, "GET PUT", "https://a.example;GET, PUT;GET, PUT;"),
            ("http://b https://a.example", true, "", "https://a.example;;;true"),
            ("*", true, "*", "https://a.example;PUT;x-a, x-b;true"),
            ("*", false, "*", "https://a.example;PUT;x-a, x-b;"),
            ("https://b.example", true, "*", ";;;"),
        ] {
            assert_eq!(ask(&cors(origins, credentials, listed)), expected, "{origins}");
        }
        let headers = fields(&[("origin", "https://a"), ("access-control-request-method", "PUT")]);
        let asked = |method| Asked { method, authority: "a", path: "/", query: "", headers: &headers };
        assert!(Cors::is_preflight(&asked(&Method::OPTIONS)) && !Cors::is_preflight(&asked(&Method::GET)));
    }

    #[test]
    fn an_answer_says_what_the_route_says_in_place_of_the_application() {
        let own = || {
            fields(&[
                ("access-control-allow-origin", "*"),
                ("access-control-allow-credentials", "true"),
                ("vary", "accept"),
                ("x-own", "1"),
            ])
        };
        let answer = |cors: &Cors, request: &[(&'static str, &'static str)]| {
            let mut answer = own();
            cors.answer(cors.request(&fields(request)).as_ref(), &mut answer);
            let names = ["access-control-allow-origin", "access-control-expose-headers", "vary"];
            names.map(|name| said(&answer, name)).join(";")
        };
        let listed = cors("https://a", false, "x-b");
        assert_eq!(answer(&listed, &[("origin", "https://a")]), "https://a;x-b;accept|Origin");
        assert_eq!(answer(&listed, &[("origin", "https://b")]), ";;accept|Origin");
        assert_eq!(answer(&listed, &[("origin", "https://a"), ("origin", "https://b")]), ";;accept|Origin");
        assert_eq!(answer(&listed, &[]), "*;;accept|Origin", "not for a page of another origin");
        let any = cors("*", false, "*");
        assert_eq!(answer(&any, &[("origin", "https://a")]), "https://a;*;accept|Origin");
        let credentialed = answer(&any, &[("origin", "https://a"), ("cookie", "a=b")]);
        assert!(credentialed.starts_with("https://a;") && credentialed.contains("x-own"), "{credentialed}");
    }
}
