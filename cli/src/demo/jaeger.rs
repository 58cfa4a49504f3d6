//! Where the demo's traces go: `--jaeger`.

use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use http::Uri;

/// Where Jaeger shows its page.
const PAGE_PORT: u16 = 16686;

/// A collector of OTLP, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Jaeger {
    endpoint: String,
    protocol: &'static str,
    host: String,
}

// === impl Jaeger ===

impl Jaeger {
    /// What tells a proxy of it, in OpenTelemetry's words: each request is traced.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint.clone()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", self.protocol.to_owned()),
            ("OTEL_TRACES_SAMPLER", "parentbased_always_on".to_owned()),
        ]
    }

    /// Where a person sees the traces.
    pub(crate) fn page(&self) -> String {
        format!("http://{}:{PAGE_PORT}/search?service=web", self.host)
    }
}

impl FromStr for Jaeger {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        const FORM: &str = "expected `<host>:<port>`, where OTLP over gRPC is taken, or `http://<host>:<port>`, where it is over HTTP";
        let (protocol, rest) = match text.strip_prefix("http://") {
            Some(rest) => ("http/protobuf", rest),
            None => ("grpc", text),
        };
        let uri: Uri = format!("http://{rest}").parse().context(FORM)?;
        let host = uri.host().filter(|host| !host.is_empty()).context(FORM)?;
        let port = uri.port_u16().filter(|port| *port != 0).context(FORM)?;
        ensure!(matches!(uri.path(), "" | "/") && uri.query().is_none() && !rest.contains('@'), FORM);
        Ok(Self { endpoint: format!("http://{host}:{port}"), protocol, host: host.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_how_it_is_spoken_to() {
        for (text, endpoint, protocol, page) in [
            ("127.0.0.1:4317", "http://127.0.0.1:4317", "grpc", "http://127.0.0.1:16686/"),
            ("jaeger.example:14317", "http://jaeger.example:14317", "grpc", "http://jaeger.example:16686/"),
            ("[::1]:4317", "http://[::1]:4317", "grpc", "http://[::1]:16686/"),
            ("http://localhost:4318/", "http://localhost:4318", "http/protobuf", "http://localhost:16686/"),
        ] {
            let jaeger: Jaeger = text.parse().unwrap();
            assert_eq!((jaeger.endpoint.as_str(), jaeger.protocol), (endpoint, protocol));
            assert!(jaeger.page().starts_with(page), "{}", jaeger.page());
            let told = jaeger.variables();
            assert!(told.contains(&("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned())), "{told:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_form() {
        for text in [
            "",
            "4317",
            "localhost",
            ":4317",
            "localhost:0",
            "localhost:70000",
            "https://jaeger:4318",
            "http://jaeger:4318/v1/traces",
            "me@jaeger:4317",
            "a b:1",
        ] {
            let error = text.parse::<Jaeger>().unwrap_err();
            assert!(format!("{error:#}").contains("http://<host>:<port>"), "{text}: {error:#}");
        }
    }
}
